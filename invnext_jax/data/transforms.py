"""Crops, resizes, flips and recolors the frames of clips.

Shape key: b clips, t frames, h w pixels, c channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
CROP_TRIES = 10


class Window(NamedTuple):
    """A rectangle of a picture, in pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def sample_multi_scale_crop(
    height: int, width: int, size: int, scales: Sequence[float], rng: np.random.Generator
) -> Window:
    """Samples a window of a picture, to be resized to a square.

    The width and the height are each the short side times an element of `scales`. The two elements
    are equal or adjacent. The window lies at one of 13 positions: the 3 x 3 grid of corners, edge
    centers and the center, and the 2 x 2 grid between them.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        size: Side of the square in pixels.
        scales: Factors by which the short side is multiplied, in descending order.
        rng: Draws scales and position.
    """
    short = min(height, width)
    # A side within 3 pixels of `size` becomes `size`, which avoids resampling.
    sides = [round(short * scale) for scale in scales]
    sides = [size if abs(side - size) < 3 and size <= short else side for side in sides]
    pairs = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_w, crop_h = pairs[rng.integers(len(pairs))]
    positions = [(x, y) for x in (0, 2, 4) for y in (0, 2, 4)]
    positions += [(x, y) for x in (1, 3) for y in (1, 3)]
    x, y = positions[rng.integers(len(positions))]
    left, top = x * (width - crop_w) // 4, y * (height - crop_h) // 4
    return Window(left, top, left + crop_w, top + crop_h)


def sample_random_resized_crop(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Window:
    """Samples a window of random area and aspect ratio, to be resized to a square.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        area: Minimum and maximum share of the picture's area.
        aspect: Minimum and maximum ratio of width to height; the ratio is drawn log-uniformly.
        rng: Draws area, aspect ratio and position.
    """
    for _ in range(CROP_TRIES):
        pixels = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        crop_w, crop_h = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        if 0 < crop_w <= width and 0 < crop_h <= height:
            left = int(rng.integers(width - crop_w, endpoint=True))
            top = int(rng.integers(height - crop_h, endpoint=True))
            break
    else:  # a very elongated picture: use the largest centered window with an allowed aspect ratio
        ratio = np.clip(width / height, *aspect)
        crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return Window(left, top, left + crop_w, top + crop_h)


def square_crop(height: int, width: int, position: float = 0.5) -> Window:
    """Returns the largest square of a picture at a position along the longer side.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        position: 0 for the left or top end, 0.5 for the center, 1 for the right or bottom end.
    """
    short = min(height, width)
    left, top = (int((side - short) * position) for side in (width, height))
    return Window(left, top, left + short, top + short)


def resize(frames: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Crops a clip, uint8 [t h w c], to a window and resizes it bilinearly to [t size size c]."""
    frames = frames[:, window.top : window.bottom, window.left : window.right]
    if frames.shape[1:3] == (size, size):
        return frames
    resized = np.empty((len(frames), size, size, frames.shape[-1]), np.uint8)
    for frame_hwc, out_hwc in zip(frames, resized, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame_hwc))
        out_hwc[:] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return resized


def flip(frames: np.ndarray) -> np.ndarray:
    """Flips a clip [t h w c] horizontally."""
    return frames[:, :, ::-1]


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
