"""Makes result rows with a weighted mean over videos and its bootstrap standard error.

Shape key: n rows of the ground truth (clips or windows), b videos.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.metrics.intervals import average_by_video, bootstrap_mean
from invnext_jax.evaluation.video_scores import VideoScores
from invnext_jax.json_file import hash_json


def make_row(
    score_n: np.ndarray,
    weight_n: np.ndarray | None,
    videos_n: np.ndarray,
    *,
    evaluator: str,
    name: str,
    what: str,
    task: str,
    metric: str,
    names: Sequence[str] = (),
    **details: Any,
) -> Row:
    """Makes a result row with the weighted mean over videos.

    Args:
      score_n: score of each row of the ground truth; NaN for rows without one.
      weight_n: weight of each row; None for equal weights.
      videos_n: index of the video of each row.
      evaluator: see `Row`.
      name: see `Row`.
      what: the input, see `Row`.
      task: see `Row`.
      metric: see `Row`.
      names: names of all videos, see `Truth.video_names`. Their hash becomes the detail
        `videos_key`, so that rows of different videos are not compared.
      **details: additional details.

    Raises:
      UserError: no row has a score.
    """
    index_b, score_b, weight_b = average_by_video(score_n, videos_n, weight_n)
    if not len(index_b):
        raise UserError(
            f"{task}: no video has ground truth for {metric}: check the layout of the data"
        )
    interval = bootstrap_mean(score_b, weight_b)
    if names:
        details["videos_key"] = hash_json(list(names))
    has_error = len(index_b) > 1 and math.isfinite(interval.standard_error)
    return Row(
        evaluator=evaluator,
        name=name,
        input=what,
        task=task,
        metric=metric,
        value=interval.value,
        standard_error=interval.standard_error if has_error else None,
        n=len(index_b),
        details=details,
        scores=VideoScores(index_b, score_b, weight_b),
    )
