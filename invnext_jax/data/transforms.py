"""Where clips are cut, how they are resized, mirrored and recoloured.

Shape key: b clips, t frames, h w pixels, c channels.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from invnext_jax.data.frames import Window

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
CROP_TRIES = 10


def sample_multi_scale_crop(
    height: int, width: int, size: int, scales: Sequence[float], rng: np.random.Generator
) -> Window:
    """A random window of a picture, to be resized to a square.

    Width and height are the short side times one of `scales` each, at most one scale apart; the
    window stands at one of 13 places: a grid of quarters, its corners, edges and centres.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture.
        size: Pixels a side of the square.
        scales: Falling shares of the short side.
        rng: Draws scale and place.
    """
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
    return Window(left, top, left + crop_w, top + crop_h)


def sample_random_resized_crop(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Window:
    """A window of random area and shape, to be resized to a square.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture.
        area: Least and greatest share of the picture.
        aspect: Least and greatest width over height, drawn evenly in the logarithm.
        rng: Draws area, shape and place.
    """
    for _ in range(CROP_TRIES):
        pixels = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        crop_w, crop_h = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        if 0 < crop_w <= width and 0 < crop_h <= height:
            left = int(rng.integers(width - crop_w, endpoint=True))
            top = int(rng.integers(height - crop_h, endpoint=True))
            break
    else:  # a very long picture: the largest window of a shape allowed, in its centre
        ratio = np.clip(width / height, *aspect)
        crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return Window(left, top, left + crop_w, top + crop_h)


def center_crop(height: int, width: int) -> Window:
    """The largest square in the centre of a picture."""
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    return Window(left, top, left + short, top + short)


def resize(frames: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Cuts a window from uint8 [t h w c] and resizes it to [t size size c]."""
    frames = frames[:, window.top : window.bottom, window.left : window.right]
    if frames.shape[1:3] == (size, size):
        return frames
    resized = np.empty((len(frames), size, size, frames.shape[-1]), np.uint8)
    for frame_hwc, out_hwc in zip(frames, resized, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame_hwc))
        out_hwc[:] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return resized


def flip(frames: np.ndarray) -> np.ndarray:
    """Mirrors [t h w c] left to right."""
    return frames[:, :, ::-1]


def jitter_colors(
    frames: np.ndarray, strengths: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue of all frames alike, in random order.

    Args:
        frames: uint8 [t h w c], RGB.
        strengths: Four numbers s. The first three draw a factor from 1 - s (not below 0) to
            1 + s: of the values, of their distance from the clip's mean gray, of their distance
            from the pixel's gray. The last draws a turn of the colour circle from -s to s.
        rng: Draws the order and, in the order above, the numbers.

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
    """Turns the hue of HSV; value and saturation stay."""
    red, green, blue = np.moveaxis(video_thwc, -1, 0)
    value_thw = video_thwc.max(-1)
    chroma_thw = value_thw - video_thwc.min(-1)
    divisor_thw = np.where(chroma_thw > 0, chroma_thw, 1)
    # In sixths of the circle: red stands at 0, green at 2, blue at 4.
    hue_thw = np.where(value_thw == green, 2 + (blue - red) / divisor_thw, 0)
    hue_thw = np.where(value_thw == blue, 4 + (red - green) / divisor_thw, hue_thw)
    hue_thw = np.where(value_thw == red, (green - blue) / divisor_thw, hue_thw)
    away_thwc = (hue_thw[..., None] + 6 * turn + np.array([5, 3, 1], np.float32)) % 6
    share_thwc = np.clip(np.minimum(away_thwc, 4 - away_thwc), 0, 1)
    return value_thw[..., None] - chroma_thw[..., None] * share_thwc
