"""Files with the score of each held-out video, from which two evaluations can be compared.

The scores of all rows of one evaluator are stored in one .npz file without pickled objects.

Shape key: b videos.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from invnext_jax import regular_file
from invnext_jax.evaluation.feature_store import npz_file

MAX_BYTES = 2**30  # maximum size of a file, before and after decompression
MAX_VIDEOS = 2**20  # maximum number of videos of a row
_PARTS = ("index", "score", "weight")
_OPTIONAL_PARTS = ("predicted", "class")


class VideoScores(NamedTuple):
    """The score of each held-out video; their weighted mean is the value of a row.

    Attributes:
      index_b: int row numbers in the held-out manifest; unique.
      score_b: float scores, for example 1 for a correct prediction and 0 for a wrong one.
      weight_b: float weights, such as the number of boxes; None for equal weights.
      predicted_b: int class that was predicted for each video; None if there are no classes.
      class_b: int class of each video, for metrics that average over classes; None for others.
    """

    index_b: np.ndarray
    score_b: np.ndarray
    weight_b: np.ndarray | None = None
    predicted_b: np.ndarray | None = None
    class_b: np.ndarray | None = None


def write(path: str | Path, scores: Sequence[VideoScores | None]) -> None:
    """Writes the scores of the rows of an evaluator atomically; rows without scores are omitted."""
    arrays = {}
    for number, row in enumerate(scores):
        if row is not None:
            weight_b = np.ones(len(row.index_b)) if row.weight_b is None else row.weight_b
            arrays[f"index_{number}"] = np.asarray(row.index_b, np.int32)
            arrays[f"score_{number}"] = np.asarray(row.score_b, np.float32)
            arrays[f"weight_{number}"] = np.asarray(weight_b, np.float32)
            for part in _OPTIONAL_PARTS:
                if (found := getattr(row, f"{part}_b")) is not None:
                    arrays[f"{part}_{number}"] = np.asarray(found, np.int32)
    npz_file.write_arrays(path, **arrays)


def read(path: str | Path, number: int) -> VideoScores | None:
    """Reads the scores of row `number`; None if there are none or the file cannot be read."""
    try:
        with npz_file.open_arrays(path, MAX_BYTES) as archive:
            scores = VideoScores(*(archive[f"{part}_{number}"] for part in _PARTS))
            for part in _OPTIONAL_PARTS:
                if (name := f"{part}_{number}") in archive:
                    scores = scores._replace(**{f"{part}_b": archive[name]})
        return scores if _is_valid(scores) else None
    except regular_file.DAMAGE:
        return None


def _is_valid(scores: VideoScores) -> bool:
    """Returns whether arrays from a file have the types and values that `VideoScores` describes."""
    index_b, score_b, weight_b, *_ = scores
    kinds = zip(scores, ("i", "f", "f", "i", "i"), strict=True)
    if not all(part is None or part.dtype.kind in kind for part, kind in kinds):
        return False
    shape = index_b.shape
    return (
        all(part is None or part.shape == shape for part in scores)
        and len(shape) == 1
        and shape[0] <= MAX_VIDEOS
        and not (index_b < 0).any()
        and len(np.unique(index_b)) == len(index_b)
        and not np.isinf(score_b).any()
        and bool(((weight_b >= 0) & np.isfinite(weight_b)).all())
    )
