"""Random changes of brightness, contrast, saturation and hue.

Shape key: t frames, h w pixels, c channels.
"""

from collections.abc import Sequence

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def jitter_colors(
    frames: np.ndarray, strengths: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Jitters brightness, contrast, saturation and hue in random order, equally for all frames.

    Args:
      frames: uint8 [t h w c], RGB.
      strengths: Strength s of each of the four changes. For brightness, contrast and saturation,
          a factor between max(0, 1 - s) and 1 + s is drawn. It multiplies the pixel values, their
          difference from the clip's mean gray, and their difference from the pixel's gray,
          respectively. For hue, a rotation between -s and s turns is drawn.
      rng: Draws the factors in the order above, then the order of the changes.

    Returns:
      uint8 [t h w c].
    """
    factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in strengths[:3]]
    amounts = [*factors, rng.uniform(-strengths[3], strengths[3])]
    changes = (_brightness, _contrast, _saturation, _hue)
    video_thwc = frames.astype(np.float32)
    for i in rng.permutation(4):
        if strengths[i]:
            video_thwc = np.clip(changes[i](video_thwc, np.float32(amounts[i])), 0, 255)
    return np.round(video_thwc).astype(np.uint8)


def _brightness(video_thwc: np.ndarray, factor: np.float32) -> np.ndarray:
    return video_thwc * factor


def _contrast(video_thwc: np.ndarray, factor: np.float32) -> np.ndarray:
    mean = (video_thwc @ LUMA).mean()
    return mean + factor * (video_thwc - mean)


def _saturation(video_thwc: np.ndarray, factor: np.float32) -> np.ndarray:
    gray_thw1 = (video_thwc @ LUMA)[..., None]
    return gray_thw1 + factor * (video_thwc - gray_thw1)


def _hue(video_thwc: np.ndarray, turn: np.float32) -> np.ndarray:
    """Rotates the hue in HSV space; value and saturation do not change."""
    red, green, blue = np.moveaxis(video_thwc, -1, 0)
    value_thw = video_thwc.max(-1)
    chroma_thw = value_thw - video_thwc.min(-1)
    divisor_thw = np.where(chroma_thw > 0, chroma_thw, 1)
    # The hue is measured in sixths of the color circle: red is 0, green is 2, blue is 4.
    hue_thw = np.where(value_thw == green, 2 + (blue - red) / divisor_thw, 0)
    hue_thw = np.where(value_thw == blue, 4 + (red - green) / divisor_thw, hue_thw)
    hue_thw = np.where(value_thw == red, (green - blue) / divisor_thw, hue_thw)
    away_thwc = (hue_thw[..., None] + 6 * turn + np.array([5, 3, 1], np.float32)) % 6
    share_thwc = np.clip(np.minimum(away_thwc, 4 - away_thwc), 0, 1)
    return value_thw[..., None] - chroma_thw[..., None] * share_thwc
