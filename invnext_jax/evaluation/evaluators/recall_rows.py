"""Makes the rows of class-mean recall for a grid of heads.

Shape key: b videos, g heads of the grid, c classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.heads.grid_selection import (
    GridScores,
    choose_heads,
    describe_heads,
)
from invnext_jax.evaluation.metrics import intervals
from invnext_jax.evaluation.metrics.classification import (
    ClassMeanRecall,
    class_mean_recall,
    class_recalls,
)
from invnext_jax.evaluation.truth import baselines
from invnext_jax.evaluation.video_scores import VideoScores


class Measured(NamedTuple):
    """Labels and scores from which the rows of a task are computed.

    Attributes:
      held_out: scores on held-out training videos; None for a single head.
      val: scores on the evaluated videos.
      trained_b: int labels of the videos that the heads were trained on; negative for none.
      train_b: int labels of all training videos. Evaluated videos of other classes are dropped.
    """

    held_out: GridScores | None
    val: GridScores
    trained_b: np.ndarray
    train_b: np.ndarray


def make_recall_rows(
    measured: Measured, grid: Sequence[Mapping[str, Any]], k: int, *, task: str, what: str, **fields
) -> list[Row]:
    """Makes two rows for a task: for the head that is best on held-out training videos, and on val.

    A single head has one row.

    Args:
      measured: see `Measured`.
      grid: options of each head, for example {"learning_rate": 1e-3, "diverged": False}.
      k: number of classes that count as predicted.
      task: see `Row`.
      what: input of the first row, see `Row`. The second one is `<what>, best on val`.
      fields: `evaluator` and `name`, see `Row`, and further details of both rows.

    Returns:
      The rows. The scores of the videos are weighted so that each class has the same weight.

    Raises:
      UserError: no evaluated video has a class with training videos.
    """
    recalls = {}
    if measured.held_out is not None:
        recalls["held_out"] = _recalls(measured.held_out, measured.trained_b, k)
    val = recalls["val"] = _recalls(measured.val, measured.train_b, k)
    if not val[0].kept_b.any():
        raise UserError(
            f"no held-out video has a class of {task} that occurs among the training videos: check "
            "that both manifests use the same class numbers"
        )
    value_g = {split: np.array([x.value for x in parts]) for split, parts in recalls.items()}
    heads = describe_heads(grid, {f"{split}_recall": x_g for split, x_g in value_g.items()})
    evaluator, name = fields.pop("evaluator"), fields.pop("name")
    rows = []
    for number, label in choose_heads(value_g, grid, what):
        found = val[number]
        kept_b = found.kept_b
        labels_b, correct_b = measured.val.labels_b[kept_b], found.correct_b[kept_b]
        weight_b, error = _weights_and_error(labels_b, correct_b)
        predicted_b = np.argmax(measured.val.prob_gbk[number][kept_b], axis=1)
        rows.append(
            Row(
                evaluator=evaluator,
                name=name,
                input=label,
                task=task,
                metric=f"class_mean_recall@{k}",
                value=found.value,
                standard_error=error,
                n=int(kept_b.sum()),
                details={
                    **heads[number],
                    "grid": heads,
                    "classes": len(found.classes_c),
                    "chance": baselines.chance_recall(found.classes_c, k),
                    "dropped": int((~kept_b).sum()),
                    **fields,
                },
                scores=VideoScores(
                    measured.val.index_b[kept_b], correct_b, weight_b, predicted_b, labels_b
                ),
            )
        )
    return rows


def _recalls(scores: GridScores, train_b: np.ndarray, k: int) -> list[ClassMeanRecall]:
    """Returns the recall of each head."""
    seen_c = np.unique(train_b[train_b >= 0])
    return [
        class_mean_recall(prob_bc, scores.labels_b, k=k, train_classes=seen_c)
        for prob_bc in scores.prob_gbk
    ]


def _weights_and_error(labels_b: np.ndarray, correct_b: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns weights [b] and the standard error of the class-mean recall.

    The mean of `correct_b` with these weights is the class-mean recall. The error is bootstrapped
    over videos; the recall of a replicate is averaged over the classes that occur in it.
    """
    classes_c, class_b, count_c = np.unique(labels_b, return_inverse=True, return_counts=True)
    weight_b = len(labels_b) / (len(classes_c) * count_c[class_b])

    def recall(rows_b: np.ndarray) -> float:
        return float(class_recalls(correct_b[rows_b], class_b[rows_b])[1].mean())

    return weight_b, intervals.bootstrap(recall, len(labels_b)).standard_error
