"""Functions for classification evaluators: selection of labeled videos, scores and rows.

Shape key: b videos, d features.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.metrics.intervals import binomial_standard_error
from invnext_jax.evaluation.video_scores import VideoScores

MAX_CLASS = 2**20  # heads have an output for each number up to the largest class


@dataclasses.dataclass(frozen=True)
class ClassifierResult:
    """Top-1 accuracies in [0, 1] of one fitted classifier.

    Attributes:
      top1: accuracy on the held-out videos.
      standard_error: standard error of `top1`, by default the binomial one; None if unknown.
      train_top1: accuracy on the training videos.
      videos: number of held-out videos.
      classes: number of classes in the training labels.
      inverse_penalty: selected inverse penalty C; None for classifiers without a penalty.
      converged: whether the solver reached its tolerance.
      seconds: total time of all fits.
      correct_b: whether each held-out video with a label was classified correctly, bool.
      predicted_b: predicted class of these videos; None if they were classified several times.
      position_b: positions of these videos in the held-out features.
    """

    top1: float
    standard_error: float | None
    train_top1: float
    videos: int
    classes: int
    inverse_penalty: float | None
    converged: bool
    seconds: float
    correct_b: np.ndarray
    predicted_b: np.ndarray | None
    position_b: np.ndarray


def score_predictions(
    predictions: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
    *,
    start: float,
    inverse_penalty: float | None = None,
    converged: bool = True,
) -> ClassifierResult:
    """Compares predictions with labels.

    Args:
      predictions: int classes [b] of the training and of the held-out videos.
      labels: int classes [b] of the training and of the held-out videos.
      start: `time.perf_counter()` before the fit.
      inverse_penalty: see `ClassifierResult`.
      converged: see `ClassifierResult`.
    """
    train_top1, top1 = (float(np.mean(p == y)) for p, y in zip(predictions, labels, strict=True))
    correct_b = predictions[1] == labels[1]
    return ClassifierResult(
        top1=top1,
        standard_error=binomial_standard_error(top1, len(labels[1])),
        train_top1=train_top1,
        videos=len(labels[1]),
        classes=len(np.unique(labels[0])),
        inverse_penalty=inverse_penalty,
        converged=converged,
        seconds=time.perf_counter() - start,
        correct_b=correct_b,
        predicted_b=predictions[1],
        position_b=np.arange(len(correct_b)),
    )


def find_labeled(labels_b: np.ndarray, task: str, split: str) -> np.ndarray:
    """Returns whether each video has a label, bool [b]. A negative number means no label.

    Raises:
      UserError: no video has a label, or a label is larger than `MAX_CLASS`. `task` and `split` are
        used in the message.
    """
    labeled_b = labels_b >= 0
    if (largest := labels_b.max(initial=0)) > MAX_CLASS:
        raise UserError(
            f"label_{task} has the class {largest} in the {split} manifest, more than {MAX_CLASS}: "
            "number the classes from 0"
        )
    if not labeled_b.any():
        raise UserError(
            f"label_{task} has no labeled video in the {split} manifest: "
            "remove the task from config.tasks or add videos with this label"
        )
    return labeled_b


def check_classes(labels_b: np.ndarray, task: str) -> None:
    """Raises `UserError` if the training labels have fewer than two classes."""
    if len(np.unique(labels_b)) < 2:
        raise UserError(
            f"label_{task} has only one class in the training manifest: "
            "remove the task from config.tasks or add videos of other classes"
        )


def fit_tasks(
    data: Sequence[np.ndarray],
    labels: Sequence[Mapping[str, np.ndarray]],
    tasks: Sequence[str],
    fit: Callable[..., ClassifierResult],
) -> dict[str, ClassifierResult]:
    """Fits one classifier for each task to the videos that have a label for this task.

    Args:
      data: features [b d] of the training videos and of the held-out videos.
      labels: int labels [b] by task, for the training videos and for the held-out videos.
      tasks: names of the tasks.
      fit: function (training features, labels, held-out features, labels) -> result.
    """
    results = {}
    for task in tasks:
        arguments = []
        for split, x_bd, by_task in zip(SPLITS.values(), data, labels, strict=True):
            labeled_b = find_labeled(by_task[task], task, split)
            arguments += [x_bd[labeled_b], by_task[task][labeled_b]]
        check_classes(arguments[1], task)
        position_b = np.flatnonzero(labeled_b)  # positions of the held-out videos, which come last
        results[task] = dataclasses.replace(fit(*arguments), position_b=position_b)
    return results


def make_rows(
    evaluator: str,
    name: str,
    what: str,
    results: Mapping[str, ClassifierResult],
    index_b: np.ndarray,
    **details,
) -> list[Row]:
    """Converts each task's result to a row.

    Args:
      evaluator: see `Row`.
      name: see `Row`.
      what: the input, see `Row`.
      results: the result of each task.
      index_b: row numbers in the manifest of all held-out videos.
      **details: additional details of all rows.
    """
    rows = []
    for task, result in results.items():
        found = {**vars(result), **details}
        position_b = found.pop("position_b")
        scores = VideoScores(
            index_b[position_b], found.pop("correct_b"), predicted_b=found.pop("predicted_b")
        )
        rows.append(
            Row(
                evaluator=evaluator,
                name=name,
                input=what,
                task=task,
                metric="top1",
                value=result.top1,
                standard_error=result.standard_error,
                n=result.videos,
                details=found,
                scores=scores,
            )
        )
    return rows
