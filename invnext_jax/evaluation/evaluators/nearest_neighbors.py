"""Classification by nearest neighbors, with all training videos or with a few of each class.

Nothing is trained. The options are in `config.knn`.

Shape key: b videos, d features, s numbers of neighbors, r random draws.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation import nearest_neighbors
from invnext_jax.evaluation.evaluators.classification import (
    ClassifierResult,
    fit_tasks,
    make_rows,
    score_predictions,
)
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.features import POOLINGS
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.metrics.intervals import mean_standard_error


class NearestNeighbors:
    """Weighted k-nearest-neighbor classification; one row for each pooling, k and task."""

    name = "knn"
    is_baseline = False
    options = ("poolings", "knn.neighbors", "knn.temperature")

    def check_config(self, config: Any) -> None:
        """Checks `config.knn` and the poolings."""
        check_config(config)

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Classifies the held-out videos."""
        rows = []
        index_b = inputs.features("val").index_b
        for pooling, data, labels in _features_by_pooling(inputs, config):
            for k, task in count_neighbors(config.knn.neighbors, labels[0], inputs.dataset.tasks):
                fit = functools.partial(classify, k=k, temperature=config.knn.temperature)
                results = fit_tasks(data, labels, (task,), fit)
                what = f"{pooling}, {k} neighbors"
                rows += make_rows(self.name, inputs.name, what, results, index_b, neighbors=k)
        return rows


class FewShot:
    """Nearest neighbors among a few labeled videos of each class, averaged over random draws.

    The standard error includes the variance over the draws and over the held-out videos.
    """

    name = "few_shot"
    is_baseline = False
    options = ("poolings", "knn")

    def check_config(self, config: Any) -> None:
        """Checks `config.knn` and the poolings."""
        check_config(config)

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Classifies the held-out videos; one row for each pooling, number of shots and task."""
        rows = []
        for pooling, data, labels in _features_by_pooling(inputs, config):
            for note in describe_small_classes(config.knn.shots, labels[0], inputs.dataset.tasks):
                inputs.notes.add(note)
            for shots in config.knn.shots:
                fit = functools.partial(
                    classify_few_shot,
                    shots=shots,
                    draws=config.knn.draws,
                    k=min(config.knn.neighbors),
                    temperature=config.knn.temperature,
                    seed=config.seed,
                )
                results = fit_tasks(data, labels, inputs.dataset.tasks, fit)
                what = f"{pooling}, {shots} per class"
                index_b = inputs.features("val").index_b
                rows += make_rows(self.name, inputs.name, what, results, index_b, shots=shots)
        return rows


def check_config(config: Any) -> None:
    """Checks `config.knn` and `config.poolings`.

    Raises:
      UserError: an option has an invalid value.
    """
    if unknown := set(config.poolings) - set(POOLINGS):
        raise UserError(f"unknown poolings {sorted(unknown)}: choose from {POOLINGS}")
    for name in ("neighbors", "shots"):
        numbers = config.knn[name]
        if not numbers or min(numbers) < 1:
            raise UserError(f"config.knn.{name}={numbers} must be a list of positive numbers")
    if config.knn.temperature <= 0:
        raise UserError(f"config.knn.temperature={config.knn.temperature} must be positive")
    if config.knn.draws < 1:
        raise UserError(f"config.knn.draws={config.knn.draws} must be at least 1")


def count_neighbors(
    neighbors: Sequence[int], labels: Mapping[str, np.ndarray], tasks: Sequence[str]
) -> list[tuple[int, str]]:
    """Returns pairs (number of neighbors, task) without repetitions.

    Numbers above the number of training videos with a label of the task are reduced to it.

    Args:
      neighbors: numbers of neighbors.
      labels: int labels [b] of the training videos by task; negative for none.
      tasks: names of the tasks.
    """
    videos = {task: int((labels[task] >= 0).sum()) for task in tasks}
    return list(dict.fromkeys((min(k, videos[task]), task) for k in neighbors for task in tasks))


def describe_small_classes(
    shots: Sequence[int], labels: Mapping[str, np.ndarray], tasks: Sequence[str]
) -> list[str]:
    """Returns a sentence for each task with classes that have fewer videos than some of `shots`.

    Args:
      shots: numbers of training videos of each class.
      labels: see `count_neighbors`.
      tasks: see `count_neighbors`.
    """
    notes = []
    for task in tasks:
        counts = np.unique(labels[task][labels[task] >= 0], return_counts=True)[1]
        if small := int((counts < max(shots)).sum()):
            notes.append(
                f"Few shot: {small} of {len(counts)} classes of {task} have fewer than "
                f"{max(shots)} training videos (the smallest {counts.min()}); all of them are used."
            )
    return notes


def _features_by_pooling(inputs: EvalInputs, config: Any):
    """Yields (pooling, L2-normalized features of both splits, labels of both splits)."""
    parts = inputs.features("train"), inputs.features("val")
    for pooling in filter(parts[0].has_pooling, config.poolings):
        data = [nearest_neighbors.l2_normalize(part.pooled(pooling)) for part in parts]
        yield pooling, data, [part.labels for part in parts]


def classify(
    train_bd: np.ndarray,
    train_labels_b: np.ndarray,
    val_bd: np.ndarray,
    val_labels_b: np.ndarray,
    *,
    k: int,
    temperature: float,
) -> ClassifierResult:
    """Classifies the held-out videos by their nearest training videos.

    Args:
      train_bd: L2-normalized features of the training videos, float32.
      train_labels_b: int labels of the training videos.
      val_bd: L2-normalized features of the held-out videos, float32.
      val_labels_b: int labels. Videos of a class without training videos count as wrong.
      k: number of neighbors; all training videos if there are fewer.
      temperature: see `nearest_neighbors.vote`.

    Returns:
      The result. The accuracy on the training videos is a leave-one-out accuracy.
    """
    start = time.perf_counter()
    predict = functools.partial(_predict, train_bd, train_labels_b, k=k, temperature=temperature)
    return score_predictions(
        (predict(train_bd, own=True), predict(val_bd)), (train_labels_b, val_labels_b), start=start
    )


def classify_few_shot(
    train_bd: np.ndarray,
    train_labels_b: np.ndarray,
    val_bd: np.ndarray,
    val_labels_b: np.ndarray,
    *,
    shots: int,
    draws: int,
    k: int,
    temperature: float,
    seed: int,
) -> ClassifierResult:
    """Classifies the held-out videos with `shots` random training videos of each class.

    Args:
      train_bd: see `classify`.
      train_labels_b: see `classify`.
      val_bd: see `classify`.
      val_labels_b: see `classify`.
      shots: number of training videos of each class; all videos of a class that has fewer.
      draws: number of random draws over which the result is averaged.
      k: see `classify`.
      temperature: see `classify`.
      seed: seed of the draws.
    """
    start = time.perf_counter()
    correct, results = [], []
    for draw in range(draws):
        rows = draw_shots(train_labels_b, shots, np.random.default_rng((seed, draw)))
        predict = functools.partial(
            _predict, train_bd[rows], train_labels_b[rows], k=k, temperature=temperature
        )
        predictions = predict(train_bd[rows]), predict(val_bd)
        labels = train_labels_b[rows], val_labels_b
        results.append(score_predictions(predictions, labels, start=start))
        correct.append(results[-1].correct_b)
    correct_rb = np.array(correct, np.float64)
    correct_b = correct_rb.mean(axis=0)
    return dataclasses.replace(
        results[-1],
        top1=float(correct_b.mean()),
        # The variance over the held-out videos is unknown if there is only one.
        standard_error=standard_error_of_draws(correct_rb) if len(correct_b) > 1 else None,
        train_top1=float(np.mean([result.train_top1 for result in results])),
        correct_b=correct_b,
        predicted_b=None,
    )


def standard_error_of_draws(correct_rb: np.ndarray) -> float:
    """Computes the standard error of the mean over `r` random draws and `b` random videos.

    The variances of the means over videos and over draws both contain the variance of their
    interaction, which therefore is subtracted once.
    """
    (r, b), mean = correct_rb.shape, correct_rb.mean()
    of_videos = mean_standard_error(correct_rb.mean(axis=0)) ** 2
    if r == 1:
        return float(np.sqrt(of_videos))
    of_draws = mean_standard_error(correct_rb.mean(axis=1)) ** 2
    rest_rb = correct_rb - correct_rb.mean(axis=0) - correct_rb.mean(axis=1, keepdims=True) + mean
    interaction = np.sum(rest_rb**2) / ((r - 1) * (b - 1)) / (r * b)
    return float(np.sqrt(max(of_videos + of_draws - interaction, of_videos, of_draws)))


def draw_shots(labels_b: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Draws up to `shots` videos of each class; returns their positions, int, ascending."""
    order_b = rng.permutation(len(labels_b))
    drawn = [order_b[labels_b[order_b] == c][:shots] for c in np.unique(labels_b)]
    return np.sort(np.concatenate(drawn))


def _predict(train_bd, train_labels_b, query_bd, *, k, temperature, own=False) -> np.ndarray:
    """Returns the predicted label of each query; `own` excludes the query from its neighbors."""
    classes, target_b = np.unique(train_labels_b, return_inverse=True)
    k = min(k, len(train_bd) - own)
    similarity_bk, neighbor_bk = nearest_neighbors.find_neighbors(query_bd, train_bd, k + own)
    if own:
        similarity_bk, neighbor_bk = _drop_own(similarity_bk, neighbor_bk)
    votes_sbc = nearest_neighbors.vote(
        similarity_bk,
        neighbor_bk,
        target_b,
        neighbors=(k,),
        temperature=temperature,
        classes=len(classes),
    )
    return classes[np.argmax(votes_sbc[0], axis=1)]


def _drop_own(similarity_bk: np.ndarray, neighbor_bk: np.ndarray) -> tuple[np.ndarray, ...]:
    """Removes query i from its neighbors, or the last neighbor if i is not among them."""
    is_own_bk = neighbor_bk == np.arange(len(neighbor_bk))[:, None]
    is_own_bk[~is_own_bk.any(axis=1), -1] = True
    shape = (len(neighbor_bk), -1)
    return tuple(x_bk[~is_own_bk].reshape(shape) for x_bk in (similarity_bk, neighbor_bk))
