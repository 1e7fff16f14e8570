"""Reads the packets of a video file without decoding: time stamps, key frames, truncation.

Frame counts in headers are used only to detect truncated files.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

MIN_SHARE = 0.98  # minimum share of the header's frame or byte count; else truncated
NO_INDEX = ("mpeg", "mpegts")  # formats whose seeks are inexact and whose time stamps are guessed
SEGMENT = (
    b"\x18\x53\x80\x67"  # ID of the Matroska element that contains everything after the file header
)
HEAD_BYTES = 4096  # bytes read from a file to find that element


class BadVideo(Exception):  # noqa: N818, short because it is used everywhere
    """A video cannot be decoded; the message contains its name and the reason.

    Attributes:
        kind: Class of the reason: "missing", "permission", "unreadable", "truncated",
            "no video stream", "unknown codec", "empty range", "corrupt", "too long" or "too small".
    """

    def __init__(self, text: str, kind: str = "corrupt"):
        super().__init__(text)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class PacketIndex:
    """Index of the packets whose frames a player shows.

    Attributes:
        times: Time stamps in presentation order; all None if any of them is missing.
        key_times: Time stamps of the key frames, ascending; empty if seeking is unreliable.
        reorder_delay: Maximum number of frames that the decoder buffers to reorder them.
    """

    times: list[int | None]
    key_times: list[int]
    reorder_delay: int


class FrameTimes(Sequence):
    """Presentation times of the frames from `start` to `end`, in seconds after the first of them.

    Attributes:
        fps: Average frames per second from the header; 25 if the header has none.
    """

    def __init__(self, times: Sequence[int | None], numbers: Sequence[int], stream):
        self.fps = float(stream.average_rate or 25)
        self._times, self._first, self._count = times, numbers[0], len(numbers)
        self._time_base = stream.time_base

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> float:
        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        first, time = self._times[self._first], self._times[self._first + index]
        return index / self.fps if first is None else float((time - first) * self._time_base)


def demux(container, stream):
    """Yields the packets of `stream`.

    PyAV's own generators leak memory unless they are exhausted; this one may be abandoned.
    """
    with contextlib.closing(container.demux(stream)) as packets:
        yield from packets


def read_head(source) -> bytes:
    """Reads the first bytes of a file without changing the position of an open file."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return file.read(HEAD_BYTES)
    position = source.tell()
    source.seek(0)
    head = source.read(HEAD_BYTES)
    source.seek(position)
    return head


def check_matroska_length(head: bytes, size: int) -> None:
    """Checks the size of a Matroska file against its header, which has no frame count.

    Args:
        head: First bytes of the file.
        size: Size of the file in bytes.

    Raises:
        BadVideo: The file is truncated.
    """
    begin = head.find(SEGMENT) + len(SEGMENT)
    if begin < len(SEGMENT) or not head[begin : begin + 1].strip(b"\0"):
        return
    # A variable-length integer: one zero bit for each further byte (up to 7), a one bit, the value.
    width = 9 - head[begin].bit_length()
    unknown = 2 ** (7 * width) - 1  # all ones: the file was written as a stream
    value = int.from_bytes(head[begin : begin + width], "big") & unknown
    end = begin + width + value
    if value != unknown and size < MIN_SHARE * end:
        raise BadVideo(f"truncated: {size} of {end} bytes", "truncated")


def scan_packets(container, stream) -> PacketIndex:
    """Reads all packets once, without decoding or keeping them.

    Raises:
        BadVideo: The file is truncated or has no frames.
    """
    format_name, packets, slots = container.format.name, [], 0
    for packet in demux(container, stream):
        if packet.size:
            packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
            slots = max(slots, (packet.dts or 0) + 1)
    # The AVI header also counts empty packets, which extend the display of the previous frame.
    count = max(slots, len(packets)) if format_name == "avi" else len(packets)
    if count < MIN_SHARE * stream.frames:
        raise BadVideo(f"truncated: {count} of {stream.frames} frames", "truncated")
    # Packets discarded by an edit list are decoded but not shown, so they have no frame number.
    shown = [(time, is_key) for time, is_key, is_discard in packets if not is_discard]
    if not shown:
        raise BadVideo("no frames")
    coded_times = [time for time, _ in shown]
    if any(time is None for time in coded_times):
        return PacketIndex([None] * len(coded_times), [], 0)
    times, key_times = sorted(coded_times), sorted(time for time, is_key in shown if is_key)
    numbers = {time: number for number, time in enumerate(times)}
    # AVI time stamps are in coded order and cannot be used if the decoder reorders frames.
    unordered = format_name == "avi" and coded_times == times and stream.codec_context.has_b_frames
    if format_name in NO_INDEX or unordered or len(numbers) < len(times):
        key_times = []
    delay = max(position - numbers[time] for position, time in enumerate(coded_times))
    return PacketIndex(times, key_times, delay)


def frames_between(
    times: Sequence[int | None], stream, start: float | None, end: float | None
) -> Sequence[int]:
    """Returns the numbers of the frames shown from `start` to `end` (exclusive), in seconds.

    Raises:
        BadVideo: No frame is in this range.
    """
    if start is None and end is None:
        return range(len(times))
    if times[0] is None:
        rate = float(stream.average_rate or 25)
        seconds = [i / rate for i in range(len(times))]
    else:
        seconds = [float((time - times[0]) * stream.time_base) for time in times]
    low = 0.0 if start is None else start
    high = math.inf if end is None else end
    numbers = [i for i, second in enumerate(seconds) if low - 1e-6 <= second < high - 1e-6]
    if not numbers:
        text = f"no frame between {low} and {high} seconds of {seconds[-1]:.2f}"
        raise BadVideo(text, "empty range")
    return numbers
