"""Crop, flip, resize and normalise clips.

Shape key: b clips, t frames, h w pixels, c channels.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def multi_scale_crop(
    frames: np.ndarray, size: int, scales: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Cuts the same random window from all frames and resizes it to a square.

    Width and height are the short side times one of `scales` each, at most one scale apart; the
    window stands at one of 13 places: a grid of quarters, its corners, edges and centres.

    Args:
        frames: uint8 [t h w c].
        size: Pixels a side of the result.
        scales: Falling shares of the short side.
        rng: Draws scale and place.

    Returns:
        uint8 [t size size c].
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    # A side within 3 pixels of the wanted size is cut to it exactly: no resampling.
    sides = [round(short * scale) for scale in scales]
    sides = [size if abs(side - size) < 3 and size <= short else side for side in sides]
    pairs = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_w, crop_h = pairs[rng.integers(len(pairs))]
    places = [(x, y) for x in (0, 2, 4) for y in (0, 2, 4)]
    places += [(x, y) for x in (1, 3) for y in (1, 3)]
    x, y = places[rng.integers(len(places))]
    left, top = x * (width - crop_w) // 4, y * (height - crop_h) // 4
    return _resize(frames, (left, top, left + crop_w, top + crop_h), size)


def resize_center(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes the largest centred square of uint8 [t h w c] to [t size size c]."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    return _resize(frames, (left, top, left + short, top + short), size)


def flip(frames: np.ndarray) -> np.ndarray:
    """Mirrors [t h w c] left to right."""
    return frames[:, :, ::-1]


def _resize(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    left, top, right, bottom = box
    frames = frames[:, top:bottom, left:right]
    if frames.shape[1:3] == (size, size):
        return frames
    images = [Image.fromarray(np.ascontiguousarray(frame_hwc)) for frame_hwc in frames]
    return np.stack(
        [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    )
