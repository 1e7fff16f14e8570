"""Linear probes of features that are too large for the exact solver.

The features are read from disk in batches, and the probes for all learning rates and weight decays
of a grid are trained together on the devices. The hyperparameters are selected on a held-out part
of the training videos; then the selected probes are trained again on all training videos.

Shape key: b videos, v views of a video, d features, k classes, g heads of the grid.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators.classification import (
    ClassifierResult,
    check_classes,
    find_labeled,
    score_predictions,
)
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.evaluation.features import VideoFeatures
from invnext_jax.evaluation.heads import class_losses

EPS = 1e-6  # of the LayerNorm
_INPUTS = "x"  # key of the features in a batch


class Statistics(NamedTuple):
    """Mean and standard deviation of the features over the training videos, float32 [d]."""

    mean_d: np.ndarray
    std_d: np.ndarray


def check_config(config: Any) -> None:
    """Checks `config.streaming`.

    Raises:
      UserError: an option is out of range.
    """
    settings = config.streaming
    for name, least in {"above_gb": 0, "epochs": 1, "warmup_epochs": 0, "batch_size": 1}.items():
        if settings[name] < least:
            raise UserError(f"config.streaming.{name}={settings[name]} must be at least {least}")
    try:
        head_training.make_grid(settings.learning_rates, settings.weight_decays)
    except UserError as error:
        raise UserError(f"config.streaming: {error}") from error


def is_needed(train: VideoFeatures, pooling: str, config: Any) -> bool:
    """Returns whether the features in float32 exceed `config.streaming.above_gb`."""
    return 4 * len(train) * train.width(pooling) / 1e9 > config.streaming.above_gb


def fit_streaming_tasks(
    train: VideoFeatures,
    val: VideoFeatures,
    pooling: str,
    tasks: Sequence[str],
    config: Any,
    state_file: Callable[..., StateFile | None] = lambda *parts: None,  # noqa: ARG005
) -> dict[str, ClassifierResult]:
    """Fits a linear probe for each task and measures its accuracy on the held-out videos.

    Args:
      train: features of the training videos.
      val: features of the held-out videos. The probabilities of their views are averaged.
      pooling: one of `features.POOLINGS`.
      tasks: names of the tasks. Videos without a label for a task are ignored in this task.
      config: config of the evaluation, with the section `streaming`.
      state_file: see `EvalInputs.state_file`; by default, no state is saved.

    Raises:
      UserError: a task has fewer than two classes or no labeled video, or a probe diverged.
    """
    start = time.perf_counter()
    targets, classes = _make_targets(train, val, tasks)
    order_b = np.random.default_rng(config.seed).permutation(len(train))
    choose_b, fit_b = np.split(order_b, [max(1, round(config.held_out * len(order_b)))])
    statistics = measure(train, pooling, config.streaming.batch_size)
    trainer = _Trainer(train, pooling, targets, classes, statistics, config, state_file)
    grid = head_training.make_grid(config.streaming.learning_rates, config.streaming.weight_decays)
    heads = trainer.train("selection", np.sort(fit_b), grid)
    scores = trainer.predict(heads.params, train, np.sort(choose_b))
    chosen = {}
    for task in tasks:
        expected_b = targets[task][np.sort(choose_b)]
        share_g = np.mean((scores[task] == expected_b[None])[:, expected_b >= 0], axis=1)
        chosen[task] = int(np.argmax(np.where(heads.diverged_g, -1.0, share_g)))
    settings = tuple(dict.fromkeys(grid[number] for number in chosen.values()))
    final = trainer.train("final", np.arange(len(train)), settings)
    if final.diverged_g.any():
        raise UserError(
            f"the linear probe of {pooling} diverged on all training videos: lower "
            "config.streaming.learning_rates"
        )
    predictions = [
        trainer.predict(final.params, part, np.arange(len(part))) for part in (train, val)
    ]
    results = {}
    for task in tasks:
        head, pairs = settings.index(grid[chosen[task]]), []
        for predicted, part in zip(predictions, (train, val), strict=True):
            labeled_b = part.labels[task] >= 0
            class_b = classes[task][predicted[task][head]]
            pairs.append((class_b[labeled_b], part.labels[task][labeled_b]))
        found = score_predictions(*zip(*pairs, strict=True), start=start)
        position_b = np.flatnonzero(val.labels[task] >= 0)
        results[task] = dataclasses.replace(found, position_b=position_b)
    return results


def measure(features: VideoFeatures, pooling: str, batch_size: int) -> Statistics:
    """Computes the statistics of the normalized rows of all videos in one pass, in float64.

    Args:
      features: features of the training videos.
      pooling: one of `features.POOLINGS`.
      batch_size: number of videos that are read at once.
    """
    count, sum_d, square_d = 0, 0.0, 0.0
    for rows_b in _blocks(np.arange(len(features)), batch_size):
        x_bd = _normalize(np.float64(features.pooled(pooling, rows_b)))
        count, sum_d = count + len(x_bd), sum_d + x_bd.sum(axis=0)
        square_d = square_d + np.square(x_bd).sum(axis=0)
    mean_d = sum_d / count
    std_d = np.sqrt(np.maximum(square_d / count - mean_d**2, 0.0))
    std_d = np.where(std_d > 1e-6 * np.abs(mean_d) + 1e-12, std_d, 1.0)
    return Statistics(mean_d.astype(np.float32), std_d.astype(np.float32))


class _Trainer:
    """Trains and applies linear heads of all tasks on one kind of features."""

    def __init__(self, train, pooling, targets, classes, statistics, config, state_file):
        self._train, self._pooling, self._targets = train, pooling, targets
        self._classes, self._statistics, self._config = classes, statistics, config
        self._state_file = state_file
        self._epoch, self._order_b = -1, None
        self._apply = jax.jit(self._probabilities)

    def train(self, name: str, rows_b: np.ndarray, grid) -> head_training.TrainedHeads:
        """Trains one head for each entry of the grid on the training videos in `rows_b`."""
        settings = self._config.streaming
        batch_size = min(settings.batch_size, len(rows_b))
        steps_of_epoch = math.ceil(len(rows_b) / batch_size)
        training = head_training.HeadTraining(
            steps=settings.epochs * steps_of_epoch,
            warmup_steps=settings.warmup_epochs * steps_of_epoch,
            seed=self._config.seed,
            clip_norm=0.0,  # the tasks of a head must not influence each other
        )
        title = f"linear-{self._pooling}-{name}"
        # The seed and the number of videos determine which videos are used.
        key = list(self._targets), grid, repr(training), batch_size, len(rows_b)
        saved = self._state_file(title, *key)
        return head_training.train_heads(
            self._init_params,
            self._loss,
            functools.partial(self._batch, rows_b, batch_size, steps_of_epoch),
            grid,
            training,
            name=f"linear probe of {self._pooling}, {name}",
            saved=saved,
            prepare=_standardize,
            frozen=self._statistics,
        )

    def predict(self, params: Any, features: VideoFeatures, rows_b: np.ndarray) -> dict[str, Any]:
        """Returns the most likely class of each task, int [g b], numbered as in `_make_targets`."""
        parts, size = [], self._config.streaming.batch_size
        for block_b in _blocks(rows_b, size):
            x_bvd = features.pooled_views(self._pooling, block_b)
            padded_bvd = np.zeros((size, *x_bvd.shape[1:]), np.float32)
            padded_bvd[: len(block_b)] = x_bvd
            found = jax.device_get(self._apply(params, self._statistics, padded_bvd))
            parts.append({task: y_gb[:, : len(block_b)] for task, y_gb in found.items()})
        return {task: np.concatenate([p[task] for p in parts], axis=1) for task in self._targets}

    def _init_params(self, key):
        del key
        width = self._train.width(self._pooling)
        return {
            task: {"kernel": jnp.zeros((width, len(names))), "bias": jnp.zeros(len(names))}
            for task, names in self._classes.items()
        }

    def _batch(self, rows_b, batch_size, steps_of_epoch, step) -> Mapping[str, np.ndarray]:
        """Returns the batch of a step.

        Each epoch has a different order. Its last batch is filled up with its first rows.
        """
        epoch, place = divmod(step, steps_of_epoch)
        if place == 0 or self._epoch != epoch:
            rng = np.random.default_rng((self._config.seed, epoch))
            self._epoch, self._order_b = epoch, rng.permutation(rows_b)
        places_b = place * batch_size + np.arange(batch_size)
        chosen_b = np.take(self._order_b, places_b, mode="wrap")
        # Reading is fastest if the rows are in ascending order.
        chosen_b = np.sort(chosen_b)
        batch = {task: target_b[chosen_b] for task, target_b in self._targets.items()}
        return {_INPUTS: self._train.pooled(self._pooling, chosen_b), **batch}

    def _loss(self, params, inputs, key):
        del key
        return sum(
            class_losses.cross_entropy(_linear(params[task], inputs[_INPUTS]), inputs[task])
            for task in self._targets
        )

    def _probabilities(self, params, statistics, x_bvd):
        x_bvd = _standardize(statistics, {_INPUTS: x_bvd}, None)[_INPUTS]
        predicted = {}
        for task in self._targets:
            logits_gbvk = jax.vmap(_linear, (0, None))(params[task], x_bvd)
            mean_gbk = jnp.mean(jax.nn.softmax(logits_gbvk), axis=2)
            predicted[task] = jnp.argmax(mean_gbk, axis=-1)
        return predicted


def _linear(params, x):
    logits = jnp.matmul(x, params["kernel"], precision=jax.lax.Precision.HIGHEST)
    return logits + jnp.expand_dims(params["bias"], range(x.ndim - 1))


def _standardize(statistics: Statistics, batch, key):
    """Normalizes rows [... d] and subtracts the mean of the training videos; see `Statistics`."""
    del key
    x = _normalize(batch[_INPUTS])
    axes = range(x.ndim - 1)
    mean, std = (jnp.expand_dims(value_d, axes) for value_d in statistics)
    return {**batch, _INPUTS: (x - mean) / std}


def _normalize(x):
    """Applies LayerNorm without scale and bias to rows [... d]."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / ((x * x).mean(axis=-1, keepdims=True) + EPS) ** 0.5


def _make_targets(train, val, tasks) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns int32 indices [b] into the training classes (-1: no label), and the classes [k]."""
    targets, classes = {}, {}
    for task in tasks:
        labels_b = train.labels[task]
        has_b = find_labeled(labels_b, task, SPLITS["train"])
        find_labeled(val.labels[task], task, SPLITS["val"])
        check_classes(labels_b[has_b], task)
        classes[task] = np.unique(labels_b[has_b])
        number_b = np.searchsorted(classes[task], labels_b)
        targets[task] = np.where(has_b, number_b, -1).astype(np.int32)
    return targets, classes


def _blocks(rows_b: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields consecutive parts of `rows_b` with at most `size` rows."""
    return (rows_b[first : first + size] for first in range(0, len(rows_b), size))
