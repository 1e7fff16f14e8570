"""What a decoder gives: frames as RGB pictures, each at its time, or why there are none.

Shape key: h w pixels, c channels.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter


class BadVideo(Exception):  # noqa: N818, as short as it is common
    """A video that cannot be decoded; the text names it and the reason.

    Attributes:
        kind: The reason's class, one of a few words: "missing", "permission", "unreadable",
            "truncated", "no video stream", "unknown codec", "empty range", "corrupt", "too long"
            or "too small".
    """

    def __init__(self, text: str, kind: str = "corrupt"):
        super().__init__(text)
        self.kind = kind


class Clock(Sequence):
    """When each frame between `start` and `end` is shown: seconds after the first of them."""

    def __init__(self, times: Sequence[int | None], shown: Sequence[int], stream):
        self.fps = float(stream.average_rate or 25)
        self._times, self._first, self._count = times, shown[0], len(shown)
        self._tick = stream.time_base

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> float:
        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        first, time = self._times[self._first], self._times[self._first + index]
        return index / self.fps if first is None else float((time - first) * self._tick)


class Window(NamedTuple):
    """A part of a picture, in pixels; `right` and `bottom` lie outside."""

    left: int
    top: int
    right: int
    bottom: int


class Converter:
    """Turns decoded frames into RGB arrays, all of the first one's size, as clips show them."""

    def __init__(self, short_side: int | None):
        self._short_side, self._size, self._turns = short_side, None, 0
        self._reformatter, self._croppers = VideoReformatter(), {}

    def measure(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Height and width of the pictures that `windows` lie in: scaled, and upright."""
        if self._size is None:
            short = min(frame.width, frame.height)
            scale = min(1.0, self._short_side / short) if self._short_side else 1.0
            self._size = [max(1, round(side * scale)) for side in (frame.width, frame.height)]
            self._turns = frame.rotation // 90 % 4
        width, height = self._size if self._turns % 2 == 0 else reversed(self._size)
        return height, width

    def __call__(
        self, number: int, frame: av.VideoFrame, window: Window | None = None, side: int = 0
    ) -> np.ndarray:
        """Scales and converts in one go, and turns frame `number`: uint8 [h w c].

        Args:
            number: To tell of it.
            frame: As decoded.
            window: Of it alone, in pixels of the scaled upright picture; it begins at an even pixel
                of the stored one, at or before its own place, for colours are stored for pairs.
            side: Pixels a side that the window is scaled to.
        """
        if frame.is_corrupt:
            raise BadVideo(f"frame {number} is corrupt")
        self.measure(frame)
        width, height = self._size
        if window is not None:
            frame, width, height = self._crop(frame, window), side, side
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation="BILINEAR",
            threads=1,  # starting threads takes longer than the work
        )
        return np.rot90(_view(rgb), self._turns)

    def _crop(self, frame: av.VideoFrame, window: Window) -> av.VideoFrame:
        """A part of the frame, whose pixels stay where they lie."""
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
        wide, high = max(1, round((right - left) * x)), max(1, round((bottom - top) * y))
        left, top = int(left * x) // 2 * 2, int(top * y) // 2 * 2
        right, bottom = min(left + wide, frame.width), min(top + high, frame.height)
        if (left, top, right, bottom) == (0, 0, frame.width, frame.height):
            return frame
        kind = frame.width, frame.height, frame.format.name, left, top, right, bottom
        if kind not in self._croppers:
            self._croppers[kind] = _make_cropper(*kind)
        self._croppers[kind].vpush(frame)
        return self._croppers[kind].vpull()


def _make_cropper(
    width: int, height: int, pixels: str, left: int, top: int, right: int, bottom: int
) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=pixels, time_base=Fraction(1, 1000)
    )
    crop = graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1")
    sink = graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def _view(rgb: av.VideoFrame) -> np.ndarray:
    """The pixels of an rgb24 frame as they lie there, [h w c]."""
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: rgb.height, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
