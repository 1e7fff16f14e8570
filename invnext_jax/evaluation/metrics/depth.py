"""Depth metrics: AbsRel and delta1 on valid pixels, without and with alignment.

Shape key: t frames, h w pixels, p valid pixels.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

MIN_DISPARITY = 1e-3  # minimum of aligned disparities, in 1 / m
RATIO = 1.25  # threshold of delta1


@dataclasses.dataclass(frozen=True)
class DepthRange:
    """Range of valid depths in meters.

    Attributes:
      low: Minimum depth, positive.
      high: Maximum depth, inclusive.
      includes_low: Whether `low` itself is valid.
    """

    low: float
    high: float
    includes_low: bool = True

    def valid(self, depth: np.ndarray) -> np.ndarray:
        """Returns whether each depth is finite and within the range, bool [...]."""
        above = depth >= self.low if self.includes_low else depth > self.low
        return above & (depth <= self.high) & np.isfinite(depth)

    def clamp(self, depth: np.ndarray) -> np.ndarray:
        """Clamps predictions [...] to the range, float64; NaN becomes `low`."""
        depth = np.nan_to_num(
            np.asarray(depth, np.float64), nan=self.low, posinf=self.high, neginf=self.low
        )
        return np.clip(depth, self.low, self.high)


SCANNET = DepthRange(1e-3, 10.0, includes_low=False)
KITTI = DepthRange(0.1, 80.0)
WORLD = DepthRange(0.5, 20.0)


class DepthScores(NamedTuple):
    """Depth metrics of a clip.

    Attributes:
      abs_rel: Mean of |prediction - target| / target; NaN without valid pixels.
      delta1: Fraction of valid pixels with max(prediction / target, target / prediction) < 1.25;
          NaN without valid pixels.
      pixels: Number of valid pixels.
    """

    abs_rel: float
    delta1: float
    pixels: int


def score_depth(
    predicted_thw: np.ndarray, depth_thw: np.ndarray, limits: DepthRange
) -> DepthScores:
    """Computes the metrics over all valid pixels of a clip, without alignment.

    Args:
      predicted_thw: Predicted depth in meters; it is clamped to `limits`.
      depth_thw: Ground-truth depth in meters. Pixels outside `limits` are ignored.
      limits: Valid range.
    """
    valid_thw = limits.valid(depth_thw)
    pixels = int(valid_thw.sum())
    if not pixels:
        return DepthScores(np.nan, np.nan, 0)
    error_p, close_p = _pixel_scores(
        limits.clamp(predicted_thw[valid_thw]), depth_thw[valid_thw].astype(np.float64)
    )
    return DepthScores(float(error_p.mean()), float(close_p.mean()), pixels)


def score_aligned_depth(
    predicted_thw: np.ndarray,
    depth_thw: np.ndarray,
    limits: DepthRange,
    *,
    is_disparity: bool = False,
) -> DepthScores:
    """Computes the metrics after alignment of scale and shift, as Video Depth Anything does.

    The predicted disparity (1 / depth) is aligned with the ground truth by least squares, with one
    scale and one shift for the whole clip. The metrics are averaged over the valid pixels of each
    frame and then over the frames that have valid pixels.

    Args:
      predicted_thw: Predicted depth in any unit, or disparity.
      depth_thw: Ground-truth depth in meters. Pixels outside `limits` are ignored.
      limits: Valid range.
      is_disparity: Whether the predictions are disparities.
    """
    valid_thw = limits.valid(depth_thw)
    pixels = int(valid_thw.sum())
    if not pixels:
        return DepthScores(np.nan, np.nan, 0)
    predicted_thw = np.asarray(predicted_thw, np.float64)
    if not is_disparity:
        tiny = np.finfo(np.float32).tiny
        predicted_thw = 1 / np.maximum(np.nan_to_num(predicted_thw, nan=limits.low), tiny)
    predicted_thw = np.nan_to_num(predicted_thw)
    depth_thw = depth_thw.astype(np.float64)
    scale, shift = fit_scale_and_shift(predicted_thw[valid_thw], 1 / depth_thw[valid_thw])
    aligned_thw = 1 / np.maximum(scale * predicted_thw + shift, MIN_DISPARITY)
    aligned_thw = np.minimum(aligned_thw, limits.high)
    errors, close = [], []
    for frame in np.flatnonzero(valid_thw.any(axis=(1, 2))):
        valid_hw = valid_thw[frame]
        error_p, close_p = _pixel_scores(aligned_thw[frame][valid_hw], depth_thw[frame][valid_hw])
        errors.append(error_p.mean())
        close.append(close_p.mean())
    return DepthScores(float(np.mean(errors)), float(np.mean(close)), pixels)


def fit_scale_and_shift(source_p: np.ndarray, target_p: np.ndarray) -> tuple[float, float]:
    """Fits target = scale * source + shift by least squares.

    If the source is constant, the scale is 0 and the shift is the mean of the target.

    Args:
      source_p: Values to align, float64.
      target_p: Target values, float64.

    Returns:
      The scale and the shift.
    """
    mean, spread_p = source_p.mean(), source_p - source_p.mean()
    power = float(spread_p @ spread_p)
    if power <= 1e-18 * max(1.0, float(source_p @ source_p)):
        return 0.0, float(target_p.mean())
    scale = float(spread_p @ (target_p - target_p.mean())) / power
    return scale, float(target_p.mean() - scale * mean)


def _pixel_scores(predicted_p: np.ndarray, depth_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    error_p = np.abs(predicted_p - depth_p) / depth_p
    close_p = np.maximum(predicted_p / depth_p, depth_p / predicted_p) < RATIO
    return error_p, close_p
