"""Finds the frames of a video file: how many there are, their times, and which are key frames.

The frames of a video are those that ffmpeg shows (`-vsync passthrough`), in presentation order and
after edit lists. In most files each packet is one such frame, so one pass over the packets finds
the times without decoding. For all other files, the frames are found by decoding the file once.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence

import av
from av.video.frame import PictureType

from invnext_jax.video import demux, packet_headers
from invnext_jax.video.demux import MIN_SHARE, BadVideo

# Formats in which each packet has a time stamp and a key frame flag, and codecs in which a packet
# is one frame, except in the cases that `packet_headers` detects.
FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "avi")
CODECS = (
    *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4"),
    *("mjpeg", "png", "prores", "dnxhd", "dvvideo", "ffv1", "huffyuv", "utvideo", "rawvideo"),
)
# Formats whose seeks are inexact or whose time stamps are guessed.
NO_SEEK = ("mpeg", "mpegts", "ogg")


@dataclasses.dataclass(frozen=True)
class PacketIndex:
    """Index of the frames that a player shows.

    All fields are numbers or tuples of numbers, so that an index can be stored as JSON.

    Attributes:
      times: Time stamp of each frame in the time base of the stream, in ascending order. If any
          is missing, all are None.
      key_times: Time stamps of the frames at which decoding can start, in ascending order. Empty
          if seeking is unreliable.
      reorder_delay: Maximum number of frames that the decoder buffers to reorder frames.
      is_decoded: Whether the frames were found by decoding. Their packets may then have different
          times.
    """

    times: tuple[int | None, ...]
    key_times: tuple[int, ...]
    reorder_delay: int
    is_decoded: bool


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


@dataclasses.dataclass(frozen=True)
class _PacketScan:
    """The packets of a file that contain data, in file order.

    Attributes:
      packets: For each packet: time stamp, whether it is a key frame, whether an edit list
          discards it, and the number of frames that are shown.
      slots: In AVI, the number of packets including empty ones, which the header also counts.
      is_exact: Whether each packet is known to contain one frame, apart from hidden frames.
    """

    packets: list[tuple[int | None, bool, bool, int]]
    slots: int
    is_exact: bool


def build_index(source, stream) -> PacketIndex:
    """Builds the index of a file.

    Args:
      source: As in `demux.open_stream`. It is opened again if the file must be decoded.
      stream: The stream of the opened file, positioned at its start. Its position is undefined
          after the call.

    Raises:
      BadVideo: The file is truncated or has no frames.
      av.FFmpegError: The file cannot be decoded.
    """
    scan = _scan_packets(stream)
    _check_length(source, stream, scan)
    shown = [packet for packet in scan.packets if not packet[2] and packet[3]]
    if not shown:
        raise BadVideo("no frames")
    times = [time for time, *_ in shown]
    if not scan.is_exact or len(set(times)) < len(times):
        return _decode_index(source, scan)
    ordered = sorted(times)
    # AVI time stamps are in coded order and cannot be used if the decoder reorders frames.
    if (
        stream.container.format.name == "avi"
        and times == ordered
        and stream.codec_context.has_b_frames
    ):
        return _decode_index(source, scan)
    numbers = {time: number for number, time in enumerate(ordered)}
    delay = max(position - numbers[time] for position, time in enumerate(times))
    key_times = sorted(time for time, is_key, *_ in shown if is_key)
    return PacketIndex(tuple(ordered), tuple(key_times), delay, is_decoded=False)


def _scan_packets(stream) -> _PacketScan:
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
    extradata = extradata or b""
    is_exact = stream.container.format.name in FORMATS and codec in CODECS
    count_frames = packet_headers.frame_counter(codec)
    packets, slots, first_time, is_avi = [], 0, None, stream.container.format.name == "avi"
    for packet in demux.demux(stream):
        time = packet.pts
        if not packets:
            demux.prime_decoder(stream, packet)
            first_time = time
            is_exact = is_exact and is_intra_packet(stream, packet)
            if codec == "h264":
                is_exact &= not packet_headers.may_have_fields(extradata, bytes(packet))
        shown = count_frames(memoryview(packet)) if count_frames else 1
        # The times are unknown for frames before the first key frame and for several frames in a
        # packet.
        is_exact = is_exact and time is not None and time >= first_time and shown <= 1
        packets.append((time, packet.is_keyframe, packet.is_discard, shown))
        if is_avi:
            slots = max(slots, (packet.dts or 0) + 1)
    return _PacketScan(packets, slots, is_exact)


def _check_length(source, stream, scan: _PacketScan) -> None:
    """Compares the number of packets with the frame count in the header.

    Raises:
      BadVideo: The file is truncated.
    """
    format_name = stream.container.format.name
    count = max(len(scan.packets), scan.slots)
    if count >= MIN_SHARE * stream.frames:
        return
    # FFmpeg may omit the samples that an edit list hides.
    if format_name.startswith("mov") and count >= len(stream.index_entries):
        with demux.open_stream(source, ignore_editlist="1") as complete:
            entries = complete.index_entries
            end = max((entry.pos + entry.size for entry in entries), default=0)
            if len(entries) >= MIN_SHARE * stream.frames and end <= complete.container.size:
                return
    raise BadVideo(f"truncated: {count} of {stream.frames} frames", "truncated")


def _decode_index(source, scan: _PacketScan) -> PacketIndex:
    """Finds the frames by decoding the file once."""
    with demux.open_stream(source) as stream:
        has_fixed_times = stream.container.format.name not in NO_SEEK
        stream.codec_context.options |= {"skip_loop_filter": "all"}  # only the times are needed
        frames = []
        try:
            for count, frame in demux.decode_all(stream):
                frames.append((count, frame.pts, is_intra(frame)))
        except av.InvalidDataError:
            # The last packet of a truncated file may be incomplete.
            if not frames or frames[-1][0] + 1 < MIN_SHARE * len(scan.packets):
                raise
    if not frames:
        raise BadVideo("no frame can be decoded")
    times = [time for _, time, _ in frames]
    if None in times or any(a >= b for a, b in zip(times, times[1:], strict=False)):
        times = _guess_times(scan, len(frames))
        return PacketIndex(times, (), 0, is_decoded=True)
    packet_times = [time for time, *_ in scan.packets]
    if not has_fixed_times or len(set(packet_times)) < len(packet_times):
        return PacketIndex(tuple(times), (), 0, is_decoded=True)
    marked = {time for time, is_key, *_ in scan.packets if is_key}
    key_times = tuple(time for _, time, intra in frames if intra and time in marked)
    numbers = {time: number for number, time in enumerate(times)}
    coded = [numbers[time] for time in packet_times if time in numbers]
    delay = max(position - number for position, number in enumerate(coded)) if coded else 0
    return PacketIndex(tuple(times), key_times, delay, is_decoded=True)


def is_intra(frame: av.VideoFrame) -> bool:
    """Returns whether a decoded frame is a key frame without references to other frames."""
    return frame.key_frame and frame.pict_type in (PictureType.I, PictureType.NONE)


def is_intra_packet(stream, packet) -> bool:
    """Returns whether a packet is marked as a key frame and its header does not contradict this."""
    context = stream.codec_context
    codec, extradata = context.codec.canonical_name, context.extradata or b""
    is_intra = packet_headers.starts_with_intra(codec, extradata, bytes(packet))
    return packet.is_keyframe and is_intra


def _guess_times(scan: _PacketScan, count: int) -> tuple[int | None, ...]:
    """Returns the packets' times if there is one for each frame, otherwise None for each frame."""
    times = sorted(p[0] for p in scan.packets if not p[2] and p[0] is not None)
    return tuple(times) if len(times) == count else (None,) * count


def describe_range(start: float, end: float | None) -> str:
    """Returns what is wrong with a range in seconds that no video can have; "" if nothing is."""
    if start < 0:
        return f"the start, {start:g} seconds, must not be negative"
    if end is not None and end < start:
        return f"the start, {start:g} seconds, is after the end, {end:g}: they seem to be swapped"
    return ""


def frames_between(
    times: Sequence[int | None], stream, start: float | None, end: float | None
) -> Sequence[int]:
    """Returns the numbers of the frames shown from `start` to `end` (exclusive), in seconds.

    Raises:
      BadVideo: No frame is in this range.
    """
    numbers = range(len(times))
    if start is None and end is None:
        return numbers
    seconds = FrameTimes(times, numbers, stream)
    low = 0.0 if start is None else start
    first = bisect.bisect_left(numbers, low - 1e-6, key=seconds.__getitem__)
    high = math.inf if end is None else end
    last = bisect.bisect_left(numbers, high - 1e-6, key=seconds.__getitem__)
    if first >= last:
        text = f"no frame between {low} and {high} seconds of {seconds[len(times) - 1]:.2f}"
        raise BadVideo(describe_range(low, end) or text, "empty range")
    return range(first, last)
