"""Box metrics: IoU, generalized IoU and the mean IoU of tracks.

Boxes are (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1, in any unit. Boxes whose corners are in the
wrong order have area 0.

Shape key: t frames, k objects.
"""

from typing import NamedTuple

import numpy as np


class TrackScores(NamedTuple):
    """Mean IoU of the boxes of a video.

    Attributes:
      mean_iou: Mean over all evaluated (object, frame) pairs, in [0, 1]; NaN without pairs.
      pairs: Number of evaluated pairs.
    """

    mean_iou: float
    pairs: int


def area(boxes: np.ndarray) -> np.ndarray:
    """Computes the areas [...] of boxes [... 4], in the dtype of the boxes."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Computes the intersection over union (IoU) of boxes, with broadcasting.

    Args:
      one: Boxes [... 4].
      other: Boxes [... 4].

    Returns:
      float64 [...], in [0, 1]; 0 for two boxes of area 0.
    """
    inner, union = _inner_and_union(one, other)
    return np.divide(inner, union, out=np.zeros_like(union), where=union > 0)


def generalized_iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Computes the generalized IoU of boxes: IoU - (area of hull - area of union) / area of hull.

    Source: Rezatofighi et al., "Generalized Intersection over Union" (CVPR 2019).

    Args:
      one: Boxes [... 4].
      other: Boxes [... 4].

    Returns:
      float64 [...], in [-1, 1].
    """
    inner, union = _inner_and_union(one, other)
    ratio = np.divide(inner, union, out=np.zeros_like(union), where=union > 0)
    low = np.minimum(one[..., :2], other[..., :2])
    high = np.maximum(one[..., 2:], other[..., 2:])
    hull = area(np.concatenate([low, high], axis=-1).astype(np.float64))
    return ratio - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def score_tracks(
    predicted_tk4: np.ndarray, boxes_tk4: np.ndarray, present_tk: np.ndarray
) -> TrackScores:
    """Computes the mean IoU over all ground-truth boxes, except those of frame 0.

    The boxes of frame 0 are given to the tracker. Objects that are absent in frame 0 have no query
    and are ignored.

    Args:
      predicted_tk4: Predicted boxes, float. NaN is replaced by 0.
      boxes_tk4: Ground-truth boxes, float.
      present_tk: Whether the object has a ground-truth box, bool.
    """
    counted_tk = present_tk & present_tk[:1]
    counted_tk[0] = False
    pairs = int(counted_tk.sum())
    if not pairs:
        return TrackScores(np.nan, 0)
    overlap_p = iou(np.nan_to_num(predicted_tk4[counted_tk]), boxes_tk4[counted_tk])
    return TrackScores(float(overlap_p.mean()), pairs)


def _inner_and_union(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.broadcast_arrays(np.asarray(one, np.float64), np.asarray(other, np.float64))
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., 2:], other[..., 2:])
    inner = area(np.concatenate([low, high], axis=-1))
    return inner, area(one) + area(other) - inner
