"""Metrics of propagated labels: region similarity J and boundary accuracy F of DAVIS, and PCK.

Sources: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation" (CVPR 2016); Pont-Tuset et al., "The 2017 DAVIS Challenge"; for PCK, Yang and Ramanan,
"Articulated Human Detection with Flexible Mixtures of Parts" (2013).

Shape key: t frames, h w pixels, j joints, 2 = (x, y).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

TOLERANCE = 0.008  # tolerance of F, as a fraction of the frame's diagonal
BODY_SCALE = 0.6  # body size, as a fraction of the diagonal of the joints' bounding box


class MaskScores(NamedTuple):
    """J and F of a video, averaged over frames and then over objects; NaN without objects.

    Attributes:
      region: Mean of J, in [0, 1].
      boundary: Mean of F, in [0, 1].
      objects: Number of objects.
    """

    region: float
    boundary: float
    objects: int

    @property
    def mean(self) -> float:
        """The mean of J and F."""
        return (self.region + self.boundary) / 2


def region_similarity(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Computes J, the intersection over union of masks.

    Args:
      predicted: Predicted masks [... h w], bool.
      truth: Ground-truth masks [... h w], bool.

    Returns:
      float64 [...], in [0, 1]; 1 if both masks are empty.
    """
    predicted, truth = np.asarray(predicted, bool), np.asarray(truth, bool)
    union = (predicted | truth).sum(axis=(-2, -1))
    inner = (predicted & truth).sum(axis=(-2, -1))
    return np.where(union > 0, inner / np.maximum(union, 1), 1.0)


def boundary_accuracy(predicted_hw: np.ndarray, truth_hw: np.ndarray) -> float:
    """Computes F, the F-measure of the boundary pixels of two masks.

    A boundary pixel is correct if the other mask has a boundary pixel within `TOLERANCE` times the
    diagonal of the frame, rounded up to whole pixels. If a mask has no boundary pixels, F is 1 if
    the other one has none either, and 0 otherwise.

    Args:
      predicted_hw: Predicted mask, bool.
      truth_hw: Ground-truth mask, bool.

    Returns:
      The F-measure, in [0, 1].
    """
    one_hw, other_hw = (find_boundary(mask) for mask in (predicted_hw, truth_hw))
    counts = int(one_hw.sum()), int(other_hw.sum())
    if not all(counts):
        return float(counts == (0, 0))
    radius = math.ceil(TOLERANCE * math.hypot(*truth_hw.shape))
    precision = (ndimage.distance_transform_edt(~other_hw)[one_hw] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~one_hw)[other_hw] <= radius).mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def find_boundary(mask_hw: np.ndarray) -> np.ndarray:
    """Returns the pixels that differ from their right, lower or lower right neighbor, bool [h w].

    The mask is padded by repeating its last row and its last column.
    """
    mask_hw = np.asarray(mask_hw, bool)
    padded = np.pad(mask_hw, ((0, 1), (0, 1)), mode="edge")
    right, down, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask_hw != right) | (mask_hw != down) | (mask_hw != diagonal)


def score_masks(
    predicted_thw: np.ndarray,
    ids_thw: np.ndarray,
    objects: Sequence[int],
    *,
    skip_last: bool = True,
) -> MaskScores:
    """Computes J and F of the objects of a video as defined by DAVIS 2017.

    The masks of frame 0 are given to the method, so frame 0 is not evaluated.

    Args:
      predicted_thw: Predicted object id of each pixel, int.
      ids_thw: Ground-truth object id of each pixel, int.
      objects: Ids of the objects to evaluate.
      skip_last: Whether to also skip the last frame, as DAVIS does.
    """
    frames = range(1, len(ids_thw) - (1 if skip_last else 0))
    if not len(frames) or not len(objects):
        return MaskScores(np.nan, np.nan, 0)
    regions, boundaries = [], []
    for number in objects:
        one, other = predicted_thw == number, ids_thw == number
        regions.append(region_similarity(one[frames.start : frames.stop], other[1 : frames.stop]))
        boundaries.append([boundary_accuracy(one[t], other[t]) for t in frames])
    return MaskScores(float(np.mean(regions)), float(np.mean(boundaries)), len(objects))


def joint_errors(
    predicted_tj2: np.ndarray, joints_tj2: np.ndarray, visible_tj: np.ndarray
) -> np.ndarray:
    """Computes the distances of predicted joints from the ground truth, in units of the body size.

    The body size is `BODY_SCALE` times the diagonal of the box around the visible joints of the
    frame, as in the evaluations of label propagation on JHMDB.

    Args:
      predicted_tj2: Predicted joints in pixels, float.
      joints_tj2: Ground-truth joints in pixels, float.
      visible_tj: Whether each joint is visible, bool.

    Returns:
      float64 [t j]; NaN for invisible joints, and in frame 0, whose joints are given.
    """
    joints_tj2 = np.asarray(joints_tj2, np.float64)
    counted_tj1 = visible_tj[..., None]
    low_t2 = np.where(counted_tj1, joints_tj2, np.inf).min(axis=1)
    high_t2 = np.where(counted_tj1, joints_tj2, -np.inf).max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        size_t = BODY_SCALE * np.hypot(*np.moveaxis(high_t2 - low_t2, -1, 0))
        distance_tj = np.hypot(*np.moveaxis(predicted_tj2 - joints_tj2, -1, 0))
        errors_tj = distance_tj / np.where(size_t > 0, size_t, np.nan)[:, None]
    errors_tj = np.where(visible_tj, errors_tj, np.nan)
    errors_tj[0] = np.nan
    return errors_tj


def pck(errors: Sequence[np.ndarray], threshold: float) -> float:
    """Computes the fraction of correct keypoints (PCK), in [0, 1]; NaN without visible joints.

    The fraction is computed for each joint over all frames of all videos, and then averaged over
    the joints.

    Args:
      errors: Result of `joint_errors` for each video; all have the same joints.
      threshold: Maximum distance in units of the body size, such as 0.1 or 0.2.
    """
    errors_tj = np.concatenate(errors)
    counted_tj = ~np.isnan(errors_tj)
    count_j = counted_tj.sum(axis=0)
    right_j = (errors_tj <= threshold).sum(axis=0)
    used_j = count_j > 0
    return float((right_j[used_j] / count_j[used_j]).mean()) if used_j.any() else math.nan
