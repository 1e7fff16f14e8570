"""What a decoder gives: frames as RGB pictures, each at its time, or why there are none.

Shape key: h w pixels, c channels.
"""

from collections.abc import Sequence

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


class Converter:
    """Turns decoded frames into RGB arrays, all of the first one's size, as clips show them."""

    def __init__(self, short_side: int | None):
        self._short_side, self._size, self._turns = short_side, None, 0
        self._reformatter = VideoReformatter()

    def __call__(self, number: int, frame: av.VideoFrame) -> np.ndarray:
        """Scales and converts in one go, and turns frame `number`: uint8 [h w c]."""
        if frame.is_corrupt:
            raise BadVideo(f"frame {number} is corrupt")
        if self._size is None:
            short = min(frame.width, frame.height)
            scale = min(1.0, self._short_side / short) if self._short_side else 1.0
            self._size = [max(1, round(side * scale)) for side in (frame.width, frame.height)]
            self._turns = frame.rotation // 90
        rgb = self._reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format="rgb24",
            interpolation="BILINEAR",
            threads=1,  # starting threads takes longer than the work
        )
        return np.rot90(_view(rgb), self._turns)


def _view(rgb: av.VideoFrame) -> np.ndarray:
    """The pixels of an rgb24 frame as they lie there, [h w c]."""
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: rgb.height, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
