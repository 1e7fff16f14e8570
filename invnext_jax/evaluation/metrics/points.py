"""Point tracking metrics of TAP-Vid.

Source: Doersch et al., "TAP-Vid: A Benchmark for Tracking Any Point in a Video" (NeurIPS 2022),
section 3.2.

Shape key: n points, t frames, 2 = (x, y).
"""

from typing import NamedTuple

import numpy as np

THRESHOLDS = (1, 2, 4, 8, 16)  # maximum distances, in pixels of 256 x 256 frames
RASTER = 256


class PointScores(NamedTuple):
    """TAP-Vid metrics of a video, in [0, 1]. They are NaN if no point is visible after its query.

    Attributes:
      position_accuracy: Fraction of visible points whose predicted position is within a
          threshold, averaged over `THRESHOLDS`; occlusion predictions are ignored.
      occlusion_accuracy: Fraction of (point, frame) pairs with a correct occlusion prediction.
      average_jaccard: Jaccard index of visible points within a threshold, averaged over
          `THRESHOLDS`.
      within: Position accuracy at each threshold.
      jaccard: Jaccard index at each threshold.
      pairs: Number of evaluated (point, frame) pairs.
    """

    position_accuracy: float
    occlusion_accuracy: float
    average_jaccard: float
    within: tuple[float, ...]
    jaccard: tuple[float, ...]
    pairs: int


def to_raster(points: np.ndarray) -> np.ndarray:
    """Converts points [... 2] in [0, 1] to pixels of 256 x 256 frames, float64."""
    return np.asarray(points, np.float64) * RASTER


def score_points(
    predicted_nt2: np.ndarray,
    hidden_nt: np.ndarray,
    points_nt2: np.ndarray,
    occluded_nt: np.ndarray,
    query_frame_n: np.ndarray,
    *,
    mode: str = "first",
) -> PointScores:
    """Computes the metrics of one video.

    Args:
      predicted_nt2: Predicted positions in pixels of 256 x 256 frames, float.
      hidden_nt: Whether each point is predicted to be occluded, bool.
      points_nt2: Ground-truth positions in the same unit, float.
      occluded_nt: Whether each point is occluded, bool.
      query_frame_n: Index of the frame in which each point is given, int.
      mode: "first" evaluates the frames after the query frame; "strided" evaluates all frames
          except the query frame.

    Raises:
      ValueError: `mode` is unknown.
    """
    if mode not in ("first", "strided"):
        raise ValueError(f'mode {mode!r} must be "first" or "strided"')
    frame_1t = np.arange(points_nt2.shape[1])[None]
    query_n1 = np.asarray(query_frame_n)[:, None]
    used_nt = frame_1t > query_n1 if mode == "first" else frame_1t != query_n1
    pairs = int(used_nt.sum())
    visible_nt, shown_nt = ~occluded_nt & used_nt, ~hidden_nt & used_nt
    if not visible_nt.any():
        nans = (np.nan,) * len(THRESHOLDS)
        return PointScores(np.nan, np.nan, np.nan, nans, nans, pairs)
    offset_nt2 = np.asarray(predicted_nt2, np.float64) - points_nt2
    distance_nt = np.hypot(offset_nt2[..., 0], offset_nt2[..., 1])
    within, jaccard = [], []
    for threshold in THRESHOLDS:
        close_nt = distance_nt < threshold  # false for NaN
        hits = (close_nt & visible_nt & shown_nt).sum()
        false_alarms = (shown_nt & ~(close_nt & visible_nt)).sum()
        within.append(float((close_nt & visible_nt).sum() / visible_nt.sum()))
        jaccard.append(float(hits / (visible_nt.sum() + false_alarms)))
    agreement = (hidden_nt == occluded_nt)[used_nt].mean()
    return PointScores(
        position_accuracy=float(np.mean(within)),
        occlusion_accuracy=float(agreement),
        average_jaccard=float(np.mean(jaccard)),
        within=tuple(within),
        jaccard=tuple(jaccard),
        pairs=pairs,
    )
