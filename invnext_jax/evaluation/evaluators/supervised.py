"""Supervised baseline: the same encoder, trained end to end on labels for a fixed budget.

Shape key: b videos, t frames, h w pixels, c channels, n tokens, d width, k classes.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from invnext_jax import loop
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators.classification import (
    ClassifierResult,
    make_rows,
    score_predictions,
)
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.feature_store.clips_in_memory import LabeledVideos
from invnext_jax.evaluation.feature_store.state_file import SaveTimer, StateFile
from invnext_jax.evaluation.heads import class_losses
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.models.encoder import Encoder
from invnext_jax.models.patches import normalize
from invnext_jax.monitoring.progress import ProgressMeter

LOG_EVERY = 10  # steps


class SupervisedBaseline:
    """End-to-end training on all tasks at once, with one row per task.

    It returns no rows if `config.supervised.steps` is 0, and none for encoders of other projects,
    which this package cannot train.
    """

    name = "supervised"
    is_baseline = True
    options = ("supervised",)

    def check_config(self, config: Any) -> None:
        """Checks the number of steps and the batch size."""
        settings = config.supervised
        if settings.steps < 0:
            raise UserError(f"config.supervised.steps={settings.steps} must not be negative")
        if settings.batch_size < 1:
            raise UserError(f"config.supervised.batch_size={settings.batch_size} must be positive")

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains and evaluates. `loss_curve` of each row is the training loss over all tasks."""
        if not config.supervised.steps:
            return []
        if inputs.encoder.loaded is None:
            inputs.notes.add(f"{self.name}: {inputs.encoder.name} cannot be trained, skipped")
            return []
        dataset = inputs.dataset
        train, val = (dataset.videos(split) for split in SPLITS)
        results, curve = train_supervised(
            inputs.encoder.loaded.encoder,
            train,
            val,
            tasks=dataset.tasks,
            config=config.supervised,
            seed=config.seed,
            saved=inputs.state_file("supervised", dict(config.supervised), dataset.tasks),
        )
        return make_rows(
            self.name, "supervised", "end to end", results, val.index_b, loss_curve=curve
        )


class Classifier(nn.Module):
    """Encoder, mean over the grid tokens, LayerNorm, and one linear head for each task."""

    encoder: Encoder
    classes: Sequence[int]

    @nn.compact
    def __call__(self, video_bthwc: jax.Array) -> list[jax.Array]:
        """Returns float32 logits [b k] of each task."""
        tokens_bnd = self.encoder(video_bthwc).tokens_bnd[:, self.encoder.class_tokens :]
        x_bd = nn.LayerNorm(name="norm")(jnp.mean(tokens_bnd, axis=1))
        linear = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
        return [linear(k, name=f"head{i}")(x_bd) for i, k in enumerate(self.classes)]


class ClassifierState(NamedTuple):
    """Parameters of the classifier and state of the optimizer."""

    params: Any
    opt_state: Any


class Recorder(loop.Callbacks):
    """Shows the progress, saves the state, and records the loss every `LOG_EVERY` steps.

    Attributes:
      loss_s: float32 recorded losses; NaN for later steps.
      meter: the progress meter, which the caller closes.
    """

    def __init__(self, steps: int, first_step: int, loss_s: np.ndarray, saved: StateFile | None):
        self._steps, self.loss_s, self._timer = steps, loss_s, SaveTimer(saved)
        quiet = jax.process_index() > 0 or first_step == steps
        self.meter = ProgressMeter(steps, "step", initial=first_step, quiet=quiet)

    @property
    def curve(self) -> list[dict[str, float]]:
        """The recorded losses, where steps are numbered from 0."""
        steps = recorded_steps(self._steps)
        return [{"step": s, "loss": float(x)} for s, x in zip(steps, self.loss_s, strict=True)]

    def after_step(self, number, state, metrics, diagnostics):
        """Records the loss of one training step."""
        del diagnostics
        steps = recorded_steps(self._steps)
        if number - 1 in steps:
            self.loss_s[steps.index(number - 1)] = metrics
            self.meter.update(number, f"supervised, loss {float(metrics):.3g}")
            self._timer.save_if_due(number, (state, self.loss_s))

    def save(self, state: ClassifierState) -> None:
        """Saves the final state."""
        self._timer.save(self._steps, (state, self.loss_s))


def recorded_steps(steps: int) -> list[int]:
    """Returns the steps, from 0, whose loss is recorded: every `LOG_EVERY` steps and the last."""
    return sorted({*range(0, steps, LOG_EVERY), steps - 1})


def train_supervised(
    encoder: Encoder,
    train: LabeledVideos,
    val: LabeledVideos,
    *,
    tasks: Sequence[str],
    config: Any,
    seed: int,
    saved: StateFile | None = None,
) -> tuple[dict[str, ClassifierResult], list[dict[str, float]]]:
    """Trains on all tasks at once and measures the accuracy of each task.

    Args:
      encoder: encoder module, which is initialized randomly and trained without drop path.
      train: training videos. Videos without a label for a task are excluded from its loss.
      val: held-out videos.
      tasks: names of the tasks.
      config: has the fields steps, batch_size, learning_rate, warmup_steps and weight_decay.
      seed: seed for the initialization and the order of videos.
      saved: file in which the state is saved and from which training resumes; None to save nothing.

    Returns:
      The result of each task, and the training loss every `LOG_EVERY` steps.
    """
    start = time.perf_counter()
    model = Classifier(encoder, count_classes(train.labels, val.labels, tasks))
    tx = make_optimizer(config)
    state = init_state(model, tx, train.video_bthwc.shape[1:], seed)
    restored = state, np.full(len(recorded_steps(config.steps)), np.nan, np.float32)
    (state, loss_s), first_step = saved.restore(restored) if saved else (restored, 0)
    recorder = Recorder(config.steps, first_step, loss_s, saved)
    batches = make_batches(train, tasks, config.batch_size, seed)
    with recorder.meter:
        state = loop.run_steps(
            make_step(model, tx),
            jax.device_put(state),
            map(jax.device_put, itertools.islice(batches, first_step, None)),
            total_steps=config.steps,
            first_step=first_step,
            callbacks=recorder,
        )
    recorder.save(state)
    predictions = [
        predict(model, state.params, part.video_bthwc, config.batch_size) for part in (train, val)
    ]
    results = {}
    for i, task in enumerate(tasks):
        labels = train.labels[task], val.labels[task]
        labeled = [y_b >= 0 for y_b in labels]
        predicted, expected = (
            tuple(part[has_b] for part, has_b in zip(parts, labeled, strict=True))
            for parts in ((predictions[0][i], predictions[1][i]), labels)
        )
        result = score_predictions(predicted, expected, start=start)
        results[task] = dataclasses.replace(result, position_b=np.flatnonzero(labeled[1]))
    return results, recorder.curve


def count_classes(
    train: Mapping[str, np.ndarray], val: Mapping[str, np.ndarray], tasks: Sequence[str]
) -> list[int]:
    """Returns the number of classes of each task, computed from its labels [b]."""
    return [int(max(train[task].max(), val[task].max())) + 1 for task in tasks]


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """Returns AdamW with warm-up and cosine decay. Weight decay applies only to matrices."""
    warmup = min(config.warmup_steps, config.steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )


def init_state(
    model: Classifier, tx: optax.GradientTransformation, clip_shape: Sequence[int], seed: int
) -> ClassifierState:
    """Initializes the parameters and the optimizer state for clips of shape [t h w c]."""
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *clip_shape)))
    params = nn.meta.unbox(params["params"])
    return ClassifierState(params, tx.init(params))


def make_step(
    model: Classifier, tx: optax.GradientTransformation
) -> Callable[[ClassifierState, tuple], tuple[ClassifierState, jax.Array]]:
    """Returns the compiled step: (state, (uint8 videos, labels [b] per task)) -> (state, loss)."""

    def loss_fn(params, video_bthwc, labels):
        logits = model.apply({"params": params}, normalize(video_bthwc))
        return sum(map(class_losses.cross_entropy, logits, labels))

    @jax.jit
    def step(state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, *batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return ClassifierState(optax.apply_updates(state.params, updates), opt_state), loss

    return step


def make_batches(
    videos: LabeledVideos, tasks: Sequence[str], batch_size: int, seed: int
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yields an infinite sequence of shuffled batches: uint8 videos [b t h w c] and labels [b].

    All batches have the same size, so that the step is compiled only once. A batch may contain
    videos from two epochs.
    """
    rng, rows = np.random.default_rng(seed), np.zeros(0, np.int64)
    while True:
        while len(rows) < batch_size:
            rows = np.concatenate([rows, rng.permutation(len(videos.video_bthwc))])
        chosen, rows = rows[:batch_size], rows[batch_size:]
        yield videos.video_bthwc[chosen], [videos.labels[task][chosen] for task in tasks]


def predict(model: Classifier, params: Any, video_bthwc: np.ndarray, batch_size: int) -> list:
    """Returns the most likely class of each video, [b], for each task."""
    apply = jax.jit(lambda params, x: model.apply({"params": params}, normalize(x)))
    predictions = []
    for first in range(0, len(video_bthwc), batch_size):
        real = video_bthwc[first : first + batch_size]
        padded = np.zeros((batch_size, *video_bthwc.shape[1:]), video_bthwc.dtype)
        padded[: len(real)] = real
        logits = jax.device_get(apply(params, padded))
        predictions.append([np.argmax(x_bk[: len(real)], axis=-1) for x_bk in logits])
    return [np.concatenate(parts) for parts in zip(*predictions, strict=True)]
