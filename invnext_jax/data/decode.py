"""Exact frames from encoded video by PyAV.

A frame's number is its place in presentation order. One pass over the packets, without decoding,
finds the time stamps and key frames; the decoder then seeks only where a group of pictures can be
skipped. Frame counts of headers are never trusted for more than telling a truncated file.

Shape key: t frames, h w pixels, c channels.
"""

import bisect
import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import av
import numpy as np

from invnext_jax.data.frames import BadVideo, Clock, Converter, Window

av.logging.set_level(av.logging.PANIC)  # bad files are reported by BadVideo, once

MIN_SHARE = 0.98  # of the header's frames or bytes; less means a truncated file
MAX_PIXELS = 2**26  # a frame; twice 8K. A damaged header may ask for far more.
NO_INDEX = ("mpeg", "mpegts")  # formats whose seeks end anywhere, with time stamps guessed
SEGMENT = b"\x18\x53\x80\x67"  # Matroska's element that holds all but the file's header
# No frame refers to one that these mark as not referred to. HEVC's higher layers may.
SKIPPING = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
T = TypeVar("T")


class _SeekError(Exception):
    """Seeking did not lead to the frame asked for."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What the packets tell of the frames shown.

    Attributes:
        times: Time stamps in presentation order; None for each where one is missing.
        keys: Time stamps of the key frames, rising; empty where seeking is of no use.
        delay: Frames that the decoder may hold back to bring them into order.
    """

    times: list[int | None]
    keys: list[int]
    delay: int


def read_frames(
    source: str | os.PathLike | bytes | BinaryIO,
    pick: Callable[[int], Sequence[int]],
    *,
    short_side: int | None = None,
    start: float | None = None,
    end: float | None = None,
    name: str = "",
) -> np.ndarray:
    """Decodes the frames that `pick` chooses.

    Args:
        source: Path of a video file, its bytes, or the open file, which must be able to seek.
        pick: Gets the number of frames between `start` and `end` and returns the numbers of those
            wanted, counted from `start`, in any order and with repeats.
        short_side: Pixels that the shorter side is scaled down to; never up. None keeps the size.
        start: Seconds after the first frame; None is the beginning.
        end: Seconds after the first frame, itself excluded; None is the end.
        name: What errors call it; "" derives it from `source`.

    Returns:
        uint8 [t h w c], RGB, upright if the file says how the camera was turned.

    Raises:
        BadVideo: The file is missing, broken, truncated, or has no video or no frame in the range.
    """
    wanted = []

    def choose(clock: Clock) -> Sequence[int]:
        wanted.extend(pick(len(clock)))
        return wanted

    def collect(frames: Iterator[tuple[int, av.VideoFrame]], _: Clock) -> np.ndarray:
        convert, video_thwc = Converter(short_side), None
        for number, frame in frames:
            image_hwc = convert(number, frame)
            if video_thwc is None:
                video_thwc = np.empty((len(wanted), *image_hwc.shape), np.uint8)
            video_thwc[[place for place, i in enumerate(wanted) if i == number]] = image_hwc
        return video_thwc

    return use_frames(source, choose, collect, start=start, end=end, name=name)


def read_clips(
    source: str | os.PathLike | bytes | BinaryIO,
    pick: Callable[[int], np.ndarray],
    windows: Sequence[Callable[[int, int], Window]],
    size: int,
    *,
    short_side: int | None = None,
    start: float | None = None,
    end: float | None = None,
    name: str = "",
) -> np.ndarray:
    """Decodes clips, of each frame of which only a window is scaled and converted.

    Args:
        source: As in `read_frames`.
        pick: As in `read_frames`, but the numbers are those of several clips, int [r t].
        windows: One of each clip: gets height and width of the upright pictures, of which the
            shorter is `short_side` or less, and is called once.
        size: Pixels a side that windows are scaled to.
        short_side: As in `read_frames`.
        start: As in `read_frames`.
        end: As in `read_frames`.
        name: As in `read_frames`.

    Returns:
        uint8 [r t size size c], RGB.

    Raises:
        BadVideo: As in `read_frames`.
    """
    chosen, drawn = [], []

    def choose(clock: Clock) -> Sequence[int]:
        chosen.append(np.asarray(pick(len(clock))))
        return chosen[0].ravel().tolist()

    def collect(frames: Iterator[tuple[int, av.VideoFrame]], _: Clock) -> np.ndarray:
        (number_rt,), convert = chosen, Converter(short_side)
        clips_rthwc = np.empty((*number_rt.shape, size, size, 3), np.uint8)
        for number, frame in frames:
            if not drawn:
                drawn.extend(window(*convert.measure(frame)) for window in windows)
            for clip_thwc, number_t, window in zip(clips_rthwc, number_rt, drawn, strict=True):
                if (places := number_t == number).any():
                    clip_thwc[places] = convert(number, frame, window, size)
        return clips_rthwc

    return use_frames(source, choose, collect, start=start, end=end, name=name)


def use_frames(
    source: str | os.PathLike | bytes | BinaryIO,
    pick: Callable[[Clock], Sequence[int]],
    use: Callable[[Iterator[tuple[int, av.VideoFrame]], Clock], T],
    *,
    start: float | None = None,
    end: float | None = None,
    name: str = "",
) -> T:
    """Decodes the frames that `pick` chooses, one by one.

    Args:
        source: As in `read_frames`.
        pick: Gets the clock and returns the numbers of the frames wanted, as in `read_frames`.
        use: Gets the frames with their numbers, rising, and the clock. It is called again, with the
            frames from the first on, where the file turns out to be without a sound index.
        start: As in `read_frames`.
        end: As in `read_frames`.
        name: As in `read_frames`.

    Returns:
        What `use` returns.

    Raises:
        BadVideo: As in `read_frames`.
    """
    if isinstance(source, bytes):
        name, source = name or f"{len(source)} bytes", io.BytesIO(source)
    else:
        name = name or (source.name if hasattr(source, "read") else os.fspath(source))
    try:
        return _use_frames(source, pick, use, (start, end))
    except (av.FFmpegError, OSError, BadVideo) as error:
        if isinstance(error, BadVideo):
            raise BadVideo(f"{name}: {error}", error.kind) from error
        reason = f"{type(error).__name__}: {error}"
        raise BadVideo(f"{name}: {reason}", kind_of(error)) from error


def kind_of(error: Exception) -> str:
    """The class of reasons, see `BadVideo`, that an error of a file or decoder belongs to."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, av.EOFError):
        return "truncated"
    return "unreadable" if isinstance(error, OSError) else "corrupt"


def _use_frames(source, pick, use, window):
    with _open(source) as container:
        if "matroska" in container.format.name:
            _check_length(_read_head(source), container.size)
        stream = container.streams.video[0]
        plan = _scan(container, stream)
        shown = _inside(plan.times, stream, window)
        clock = Clock(plan.times, shown, stream)
        first = shown[0]
        wanted = [first + i for i in sorted(set(pick(clock)))]
        with contextlib.suppress(_SeekError):
            frames = _seek_and_decode(container, stream, plan, wanted)
            return use(((number - first, frame) for number, frame in frames), clock)
    with _open(source) as container:  # MPEG-TS has no index, AVI may lack time stamps
        frames = _decode_all(container, wanted)
        return use(((number - first, frame) for number, frame in frames), clock)


def demux(container, stream):
    """Yields the packets of `stream`.

    PyAV leaks where its own generators are not run to their end; this one may be left at any place.
    """
    with contextlib.closing(container.demux(stream)) as packets:
        yield from packets


def _open(source):
    if hasattr(source, "read"):
        source.seek(0)
    # Titles in an odd encoding are no reason to refuse a video.
    container = av.open(source, metadata_errors="ignore")
    if not container.streams.video:
        container.close()
        raise BadVideo("no video stream", "no video stream")
    # One thread a video: the workers share the cores, and frame threads add delay to every seek.
    context = container.streams.video[0].codec_context
    if context is None:
        container.close()
        raise BadVideo("unknown codec", "unknown codec")
    context.thread_type, context.thread_count = "SLICE", 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def _read_head(source) -> bytes:
    """The first bytes; an open file stays where its container has it."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return file.read(4096)
    place = source.tell()
    source.seek(0)
    head = source.read(4096)
    source.seek(place)
    return head


def _check_length(head: bytes, size: int) -> None:
    """Refuses a Matroska file of fewer bytes than it says; its header counts no frames."""
    begin = head.find(SEGMENT) + len(SEGMENT)
    if begin < len(SEGMENT) or not head[begin : begin + 1].strip(b"\0"):
        return
    # A number of 1 to 8 bytes: as many zero bits as bytes follow, a one, the value.
    width = 9 - head[begin].bit_length()
    unknown = 2 ** (7 * width) - 1  # all ones: written as a stream
    value = int.from_bytes(head[begin : begin + width], "big") & unknown
    end = begin + width + value
    if value != unknown and size < MIN_SHARE * end:
        raise BadVideo(f"truncated: {size} of {end} bytes", "truncated")


def _scan(container, stream) -> _Plan:
    """Reads all packets once, without decoding or keeping them."""
    kind, packets, slots = container.format.name, [], 0
    for packet in demux(container, stream):
        if packet.size:
            packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
            slots = max(slots, (packet.dts or 0) + 1)
    # AVI's header also counts the empty frames that make the one before them stand for longer.
    count = max(slots, len(packets)) if kind == "avi" else len(packets)
    if count < MIN_SHARE * stream.frames:
        raise BadVideo(f"truncated: {count} of {stream.frames} frames", "truncated")
    # An edit list marks what it cuts away; counting those would shift every number.
    shown = [(time, is_key) for time, is_key, is_cut in packets if not is_cut]
    if not shown:
        raise BadVideo("no frames")
    coded = [time for time, _ in shown]
    if any(time is None for time in coded):
        return _Plan([None] * len(coded), [], 0)
    times, keys = sorted(coded), sorted(time for time, is_key in shown if is_key)
    places = {time: number for number, time in enumerate(times)}
    # AVI counts frames as they are stored: of no use where the decoder changes their order.
    unordered = kind == "avi" and coded == times and stream.codec_context.has_b_frames
    if kind in NO_INDEX or unordered or len(places) < len(times):
        keys = []
    delay = max(number - places[time] for number, time in enumerate(coded))
    return _Plan(times, keys, delay)


def _inside(times, stream, window) -> Sequence[int]:
    """Numbers of the frames shown between the two seconds of `window`."""
    start, end = window
    if start is None and end is None:
        return range(len(times))
    if times[0] is None:
        rate = float(stream.average_rate or 25)
        seconds = [i / rate for i in range(len(times))]
    else:
        seconds = [float((time - times[0]) * stream.time_base) for time in times]
    low = 0.0 if start is None else start
    high = math.inf if end is None else end
    shown = [i for i, second in enumerate(seconds) if low - 1e-6 <= second < high - 1e-6]
    if not shown:
        text = f"no frame between {low} and {high} seconds of {seconds[-1]:.2f}"
        raise BadVideo(text, "empty range")
    return shown


def _seek_and_decode(container, stream, plan, wanted):
    """Yields (number, frame) for the sorted numbers `wanted`, each group decoded once at most."""
    times, keys = plan.times, plan.keys
    if not keys:
        raise _SeekError
    wanted_times = {times[number] for number in wanted}
    decoded, position, last = None, None, -1
    for number in wanted:
        time = times[number]
        key = keys[max(0, bisect.bisect_right(keys, time) - 1)]
        # What the decoder still holds back is cheaper to take than to seek past.
        if decoded is None or bisect.bisect_left(times, key) - last - 1 > plan.delay:
            container.seek(key, stream=stream, backward=True)
            decoded, position, sound = _decode(container, stream, wanted_times), None, False
        for frame in decoded:
            if frame.pts is None or (position is not None and frame.pts <= position):
                raise _SeekError
            position = frame.pts
            # A frame before which no key frame came is a guess of the decoder's.
            sound = sound or position == key
            if position > time or (position == time and not sound):
                raise _SeekError
            if position == time:
                yield number, frame
                break
        else:
            raise _SeekError
        last = number


def _decode(container, stream, wanted_times):
    """Yields frames from where `container` stands, some without use left out."""
    context = stream.codec_context
    # An AVI packet may hold the frame of the next one's time.
    skipping = context.name in SKIPPING and container.format.name != "avi"
    mode = "DEFAULT"
    for packet in demux(container, stream):
        needless = skipping and packet.pts is not None and packet.pts not in wanted_times
        if mode != (mode := "NONREF" if needless else "DEFAULT"):
            context.skip_frame = mode
        yield from packet.decode()


def _decode_all(container, wanted):
    """Yields (number, frame) by counting the frames from the start."""
    waiting = iter(wanted)
    target = next(waiting)
    packets = demux(container, container.streams.video[0])
    frames = (frame for packet in packets for frame in packet.decode())
    for number, frame in enumerate(frames):
        if number == target:
            yield number, frame
            target = next(waiting, None)
            if target is None:
                return
    raise BadVideo(f"frame {target} cannot be decoded")
