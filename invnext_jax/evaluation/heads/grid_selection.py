"""Selects one head of a grid of learning rates and weight decays.

Published results are often those of the head that is best on the evaluated videos. This estimate is
biased upward. Therefore the head that is best on held-out training videos is reported first, and
both rows are labeled.

Shape key: g heads of the grid, b videos, v views (crops of videos), k classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.metrics.classification import is_in_top
from invnext_jax.evaluation.metrics.intervals import binomial_standard_error
from invnext_jax.evaluation.video_scores import VideoScores

BEST_ON_VAL = "best on val"  # suffix of `Row.input`


@dataclasses.dataclass(frozen=True)
class GridScores:
    """Class probabilities of all heads of a grid for one split and task.

    Attributes:
      prob_gbk: float class probabilities, averaged over the views of a video.
      labels_b: int labels, not negative.
      index_b: rows of the videos in the manifest.
    """

    prob_gbk: np.ndarray
    labels_b: np.ndarray
    index_b: np.ndarray

    @property
    def correct_gb(self) -> np.ndarray:
        """Whether the class with the highest probability is the label."""
        return np.stack([is_in_top(prob_bk, self.labels_b) for prob_bk in self.prob_gbk])

    @property
    def top1_g(self) -> np.ndarray:
        """Accuracy of each head, in [0, 1]."""
        return self.correct_gb.mean(axis=1)


def is_grid(settings: Any) -> bool:
    """Returns whether several heads are trained, of which the best is selected."""
    return len(settings.learning_rates) * len(settings.weight_decays) > 1


def held_out_share(settings: Any) -> float:
    """Returns the fraction of the training videos on which a head is selected; 0 without a grid."""
    return settings.held_out if is_grid(settings) else 0.0


def hold_out_rows(count: int, share: float, seed: int) -> np.ndarray:
    """Returns which of `count` rows of a manifest are held out from training, bool [count].

    The result depends only on the arguments, not on which videos can be read. At least one row is
    held out, and at least one is not. If `share` is 0, no row is held out.
    """
    held = np.zeros(count, bool)
    if not share:
        return held
    number = min(max(1, round(share * count)), count - 1)
    held[np.random.default_rng(seed).permutation(count)[:number]] = True
    return held


def scored_rows(held_out: np.ndarray) -> dict[str, np.ndarray | None]:
    """Returns the rows to evaluate the heads on, by split: the held-out ones, and all of "val"."""
    held_rows = np.flatnonzero(held_out)
    return {**({"train": held_rows} if len(held_rows) else {}), "val": None}


def average_views(
    prob_gvk: np.ndarray, labels_v: np.ndarray, index_v: np.ndarray
) -> GridScores | None:
    """Averages the class probabilities of the views of each video.

    Args:
      prob_gvk: float class probabilities.
      labels_v: int labels; videos without a label (a negative number) are left out.
      index_v: rows of the videos in the manifest; negative for padding.

    Returns:
      The scores in manifest order, or None if no video has a label.
    """
    used_v = (labels_v >= 0) & (index_v >= 0)
    if not used_v.any():
        return None
    index_b, first_b, video_v = np.unique(index_v[used_v], return_index=True, return_inverse=True)
    prob_gvk = np.asarray(prob_gvk, np.float64)[:, used_v]
    total_gbk = np.zeros((len(prob_gvk), len(index_b), prob_gvk.shape[-1]))
    np.add.at(total_gbk, (slice(None), video_v), prob_gvk)
    views_b = np.bincount(video_v)
    labels_b = labels_v[used_v][first_b]
    return GridScores(total_gbk / views_b[None, :, None], labels_b, index_b)


def choose_head(score_g: np.ndarray, grid: Sequence[Mapping[str, Any]]) -> int:
    """Returns the index of the head with the highest score. Scores are in [0, 1].

    Heads that diverged ("diverged" in their options) are not chosen if there is another one. If
    scores are equal, the first head is chosen.
    """
    penalty_g = np.array([2.0 * options.get("diverged", False) for options in grid])
    return int(np.argmax(np.nan_to_num(score_g) - penalty_g))


def choose_heads(
    scores: Mapping[str, np.ndarray], grid: Sequence[Mapping[str, Any]], what: str
) -> list[tuple[int, str]]:
    """Returns the index of the head and the input of each row of a task.

    Args:
      scores: scores [g] on "val" and, if the heads are a grid, on "held_out".
      grid: see `make_grid_rows`.
      what: see `make_grid_rows`.
    """
    if "held_out" not in scores:
        return [(0, what)]
    labels = {"held_out": what, "val": f"{what}, {BEST_ON_VAL}"}
    return [(choose_head(scores[split], grid), label) for split, label in labels.items()]


def describe_heads(
    grid: Sequence[Mapping[str, Any]], scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Returns the options of each head of a grid together with its scores [g] by name."""
    return [
        {**options, **{name: float(score_g[i]) for name, score_g in scores.items()}}
        for i, options in enumerate(grid)
    ]


def make_grid_rows(
    held_out: GridScores | None,
    val: GridScores,
    grid: Sequence[Mapping[str, Any]],
    *,
    evaluator: str,
    name: str,
    what: str,
    task: str,
    **details: Any,
) -> list[Row]:
    """Makes two rows for a task: for the head that is best on held-out training videos, and on val.

    The heads are selected by `choose_head`. A single head has one row.

    Args:
      held_out: scores on held-out training videos; None for a single head.
      val: scores on the evaluated videos.
      grid: options of each head, for example {"learning_rate": 1e-3, "diverged": False}.
      evaluator: see `Row`.
      name: see `Row`.
      what: input of the first row, see `Row`. The second one is `<what>, best on val`.
      task: see `Row`.
      details: further fields of both rows.

    Returns:
      The rows, with a score of 1 or 0 for each video.
    """
    top1 = {} if held_out is None else {"held_out": held_out.top1_g}
    top1["val"] = val.top1_g
    heads = describe_heads(grid, {f"{split}_top1": top1_g for split, top1_g in top1.items()})
    rows = []
    for number, label in choose_heads(top1, grid, what):
        value = float(val.top1_g[number])
        rows.append(
            Row(
                evaluator=evaluator,
                name=name,
                input=label,
                task=task,
                metric="top1",
                value=value,
                standard_error=binomial_standard_error(value, len(val.labels_b)),
                n=len(val.labels_b),
                details={**heads[number], "grid": heads, **details},
                scores=VideoScores(
                    val.index_b,
                    val.correct_gb[number].astype(np.float32),
                    predicted_b=np.argmax(val.prob_gbk[number], axis=1),
                ),
            )
        )
    return rows
