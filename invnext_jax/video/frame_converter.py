"""Selects windows of frames, and converts decoded frames to upright RGB images.

Shape key: t frames, h w pixels, c channels.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from PIL import Image

from invnext_jax.video.demux import BadVideo

CROP_TRIES = 10


class Window(NamedTuple):
    """A rectangle of an image, in pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def sample_multi_scale_crop(
    height: int, width: int, size: int, scales: Sequence[float], rng: np.random.Generator
) -> Window:
    """Samples a window of an image, to be resized to a square.

    The width and the height are each the short side times an element of `scales`. The two elements
    are equal or adjacent. The window lies at one of 13 positions: the 3 x 3 grid of corners, edge
    centers and the center, and the 2 x 2 grid between them.

    Args:
      height: Height of the image in pixels.
      width: Width of the image in pixels.
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
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      area: Minimum and maximum share of the image's area.
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
    else:  # a very elongated image: use the largest centered window with an allowed aspect ratio
        ratio = np.clip(width / height, *aspect)
        crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return Window(left, top, left + crop_w, top + crop_h)


def square_crop(height: int, width: int, position: float = 0.5) -> Window:
    """Returns the largest square of an image at a position along the longer side.

    Args:
      height: Height of the image in pixels.
      width: Width of the image in pixels.
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


class Orientation(NamedTuple):
    """Transform that makes a stored image upright: a transposition, then flips.

    Attributes:
      transpose: Whether rows and columns are exchanged.
      flip_x: Whether the image is then flipped left to right.
      flip_y: Whether the image is then flipped top to bottom.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of_frame(cls, frame: av.VideoFrame) -> "Orientation":
        """Reads the orientation from the display matrix of a frame, as ffmpeg's autorotate does.

        Other rotation angles are rounded to the nearest quarter turn.
        """
        data = frame.side_data.get(Type.DISPLAYMATRIX)
        if data is None:
            return cls()
        # The upper left of the 3 x 3 matrix maps (x, y) to (a x + c y, b x + d y).
        a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    @property
    def is_mirrored(self) -> bool:
        """Whether the image is mirrored, so that a rotation alone cannot make it upright."""
        return (self.transpose + self.flip_x + self.flip_y) % 2 == 1

    def apply(self, image_hwc: np.ndarray) -> np.ndarray:
        """Returns a view of the upright image."""
        if self.transpose:
            image_hwc = image_hwc.swapaxes(0, 1)
        return image_hwc[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def undo(self, window: Window, height: int, width: int) -> Window:
        """Maps a window of the upright image back to the stored image.

        Args:
          window: Window of the upright image.
          height: Height of the upright image in pixels.
          width: Width of the upright image in pixels.
        """
        left, top, right, bottom = window
        if self.flip_x:
            left, right = width - right, width - left
        if self.flip_y:
            top, bottom = height - bottom, height - top
        return (
            Window(top, left, bottom, right) if self.transpose else Window(left, top, right, bottom)
        )


class FrameConverter:
    """Converts decoded frames of one video to RGB arrays, scaled by the factor for the first frame.

    Args:
      short_side: Target length of the shorter side in pixels. Smaller videos are not enlarged.
          None keeps the size.
    """

    def __init__(self, short_side: int | None):
        self._short_side, self._size, self._orientation = short_side, None, Orientation()
        self._reformatter, self._croppers = VideoReformatter(), {}

    def frame_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Returns the height and width of the scaled upright image. Windows are in its pixels."""
        if self._size is None:
            short = min(frame.width, frame.height)
            scale = min(1.0, self._short_side / short) if self._short_side else 1.0
            self._size = [max(1, round(side * scale)) for side in (frame.width, frame.height)]
            self._orientation = Orientation.of_frame(frame)
        width, height = reversed(self._size) if self._orientation.transpose else self._size
        return height, width

    def __call__(
        self, number: int, frame: av.VideoFrame, window: Window | None = None, size: int = 0
    ) -> np.ndarray:
        """Scales and converts a frame in one pass, and makes it upright.

        Args:
          number: Frame number, for error messages.
          frame: Decoded frame.
          window: Window to convert, in pixels of the scaled upright image. None converts the
              complete image. The start is rounded down to an even pixel of the stored frame,
              because chroma is stored for pairs of pixels.
          size: Output height and width of the window in pixels.

        Returns:
          uint8 [h w c].

        Raises:
          BadVideo: The decoder marked the frame as corrupt.
        """
        if frame.is_corrupt:
            raise BadVideo(f"frame {number} is corrupt")
        self.frame_size(frame)
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
        return self._orientation.apply(_view_pixels(rgb))

    def _crop(self, frame: av.VideoFrame, window: Window) -> av.VideoFrame:
        """Crops a frame without copying its pixels."""
        width, height = self._size
        left, top, right, bottom = self._orientation.undo(window, *self.frame_size(frame))
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
