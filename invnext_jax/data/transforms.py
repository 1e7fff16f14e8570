"""Crops, resizes, flips and recolors the frames of clips, and converts decoded frames to RGB.

Shape key: b clips, t frames, h w pixels, c channels.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from invnext_jax.data.demux import BadVideo

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

    Width and height are each the short side times an element of `scales`; the two elements are
    equal or adjacent. The window lies at one of 13 positions: the 3 x 3 grid of corners, edge
    centres and the centre, and the 2 x 2 grid between them.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        size: Side of the square in pixels.
        scales: Factors of the short side, in descending order.
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
    else:  # very elongated picture: use the largest centred window with an allowed aspect ratio
        ratio = np.clip(width / height, *aspect)
        crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return Window(left, top, left + crop_w, top + crop_h)


def center_crop(height: int, width: int) -> Window:
    """Returns the largest centred square of a picture."""
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    return Window(left, top, left + short, top + short)


def resize(frames: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Crops uint8 [t h w c] to a window and resizes it bilinearly to [t size size c]."""
    frames = frames[:, window.top : window.bottom, window.left : window.right]
    if frames.shape[1:3] == (size, size):
        return frames
    resized = np.empty((len(frames), size, size, frames.shape[-1]), np.uint8)
    for frame_hwc, out_hwc in zip(frames, resized, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame_hwc))
        out_hwc[:] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return resized


def flip(frames: np.ndarray) -> np.ndarray:
    """Flips [t h w c] horizontally."""
    return frames[:, :, ::-1]


def jitter_colors(
    frames: np.ndarray, strengths: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Jitters brightness, contrast, saturation and hue in random order, equally for all frames.

    Args:
        frames: uint8 [t h w c], RGB.
        strengths: Strength s of the four changes. Brightness, contrast and saturation each draw a
            factor from max(0, 1 - s) to 1 + s. It multiplies the values, their difference from the
            clip's mean gray, and their difference from the pixel's gray, respectively. Hue draws a
            rotation from -s to s turns.
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
    # The hue is in sixths of the color circle: red is 0, green 2, blue 4.
    hue_thw = np.where(value_thw == green, 2 + (blue - red) / divisor_thw, 0)
    hue_thw = np.where(value_thw == blue, 4 + (red - green) / divisor_thw, hue_thw)
    hue_thw = np.where(value_thw == red, (green - blue) / divisor_thw, hue_thw)
    away_thwc = (hue_thw[..., None] + 6 * turn + np.array([5, 3, 1], np.float32)) % 6
    share_thwc = np.clip(np.minimum(away_thwc, 4 - away_thwc), 0, 1)
    return value_thw[..., None] - chroma_thw[..., None] * share_thwc


class FrameConverter:
    """Converts decoded frames of one video to RGB arrays with the scale of the first frame.

    Args:
        short_side: Target length of the shorter side in pixels. Smaller videos are not enlarged.
            None keeps the size.
    """

    def __init__(self, short_side: int | None):
        self._short_side, self._size, self._turns = short_side, None, 0
        self._reformatter, self._croppers = VideoReformatter(), {}

    def picture_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Returns height and width of the scaled upright picture, to which windows refer."""
        if self._size is None:
            short = min(frame.width, frame.height)
            scale = min(1.0, self._short_side / short) if self._short_side else 1.0
            self._size = [max(1, round(side * scale)) for side in (frame.width, frame.height)]
            self._turns = frame.rotation // 90 % 4
        width, height = self._size if self._turns % 2 == 0 else reversed(self._size)
        return height, width

    def __call__(
        self, number: int, frame: av.VideoFrame, window: Window | None = None, size: int = 0
    ) -> np.ndarray:
        """Scales, converts and rotates a frame in one pass.

        Args:
            number: Frame number, for error messages.
            frame: Decoded frame.
            window: Window to convert, in pixels of the scaled upright picture. None converts the
                complete picture. The start is rounded down to an even pixel of the stored frame,
                because chroma is stored for pairs of pixels.
            size: Output height and width of the window in pixels.

        Returns:
            uint8 [h w c].

        Raises:
            BadVideo: The decoder marked the frame as corrupt.
        """
        if frame.is_corrupt:
            raise BadVideo(f"frame {number} is corrupt")
        self.picture_size(frame)
        width, height = self._size
        if window is not None:
            frame, width, height = self._crop(frame, window), size, size
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation="BILINEAR",
            threads=1,  # starting threads takes longer than the conversion
        )
        return np.rot90(_view_pixels(rgb), self._turns)

    def _crop(self, frame: av.VideoFrame, window: Window) -> av.VideoFrame:
        """Crops a frame without copying its pixels."""
        width, height = self._size
        left, top, right, bottom = {
            0: window,
            1: (width - window.bottom, window.left, width - window.top, window.right),
            2: (
                width - window.right,
                height - window.bottom,
                width - window.left,
                height - window.top,
            ),
            3: (window.top, height - window.right, window.bottom, height - window.left),
        }[self._turns]
        x, y = frame.width / width, frame.height / height
        crop_w, crop_h = max(1, round((right - left) * x)), max(1, round((bottom - top) * y))
        left, top = int(left * x) // 2 * 2, int(top * y) // 2 * 2
        right, bottom = min(left + crop_w, frame.width), min(top + crop_h, frame.height)
        if (left, top, right, bottom) == (0, 0, frame.width, frame.height):
            return frame
        key = frame.width, frame.height, frame.format.name, left, top, right, bottom
        if key not in self._croppers:
            self._croppers[key] = _make_cropper(*key)
        self._croppers[key].vpush(frame)
        return self._croppers[key].vpull()


def _make_cropper(
    width: int, height: int, pixel_format: str, left: int, top: int, right: int, bottom: int
) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=pixel_format, time_base=Fraction(1, 1000)
    )
    crop = graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1")
    sink = graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def _view_pixels(rgb: av.VideoFrame) -> np.ndarray:
    """Returns a view [h w c] of the pixels of an rgb24 frame."""
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: rgb.height, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
