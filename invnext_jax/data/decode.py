"""Exact frames from encoded video by PyAV.

A frame's number is its place in presentation order. One pass over the packets, without decoding,
finds the time stamps and key frames; the decoder then seeks only where a group of pictures can be
skipped (see `packets`).

Shape key: t frames, h w pixels, c channels.
"""

import bisect
import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import av
import numpy as np

from invnext_jax.data import demux
from invnext_jax.data.frames import BadVideo, Clock, Converter, Window

av.logging.set_level(av.logging.PANIC)  # bad files are reported by BadVideo, once

MAX_PIXELS = 2**26  # a frame; twice 8K. A damaged header may ask for far more.
# No frame refers to one that these mark as not referred to. HEVC's higher layers may.
SKIPPING = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
T = TypeVar("T")


class _SeekError(Exception):
    """Seeking did not lead to the frame asked for."""


def read_frames(
    source: str | os.PathLike | bytes | BinaryIO, pick: Callable[[int], Sequence[int]], **options
) -> np.ndarray:
    """Decodes the frames that `pick` chooses.

    Args:
        source: As in `use_frames`.
        pick: Gets the number of frames between `start` and `end` and returns the numbers of those
            wanted, counted from `start`, in any order and with repeats.
        **options: `short_side`, `start`, `end` and `name`, as in `read_clips`.

    Returns:
        uint8 [t h w c], RGB, upright if the file says how the camera was turned.

    Raises:
        BadVideo: As in `use_frames`.
    """
    (video_thwc,) = read_clips(
        source, lambda count: np.asarray(pick(count))[None], [lambda *_: None], 0, **options
    )
    return video_thwc


def read_clips(
    source: str | os.PathLike | bytes | BinaryIO,
    pick: Callable[[int], np.ndarray],
    windows: Sequence[Callable[[int, int], Window | None]],
    size: int,
    *,
    short_side: int | None = None,
    **options,
) -> np.ndarray:
    """Decodes clips, of each frame of which only a window is scaled and converted.

    Args:
        source: As in `use_frames`.
        pick: As in `read_frames`, but the numbers are those of several clips, int [r t].
        windows: One of each clip: gets height and width of the scaled upright pictures, and is
            called once. None stands for the whole picture, as it is.
        size: Pixels a side that windows are scaled to.
        short_side: Pixels that the shorter side is scaled down to; never up. None keeps the size.
        **options: `start`, `end` and `name`, as in `use_frames`.

    Returns:
        uint8 [r t h w c], RGB; h and w are `size` where there are windows.

    Raises:
        BadVideo: As in `use_frames`.
    """
    chosen, drawn = [], []

    def choose(clock: Clock) -> Sequence[int]:
        chosen.append(np.asarray(pick(len(clock))))
        return chosen[0].ravel().tolist()

    def collect(frames: Iterator[tuple[int, av.VideoFrame]], _: Clock) -> np.ndarray:
        (number_rt,), convert, clips_rthwc = chosen, Converter(short_side), None
        for number, frame in frames:
            if not drawn:
                drawn.extend(window(*convert.measure(frame)) for window in windows)
            for clip, window in enumerate(drawn):
                if not (places := number_rt[clip] == number).any():
                    continue
                image_hwc = convert(number, frame, window, size)
                if clips_rthwc is None:
                    clips_rthwc = np.empty((*number_rt.shape, *image_hwc.shape), np.uint8)
                clips_rthwc[clip, places] = image_hwc
        return clips_rthwc

    return use_frames(source, choose, collect, **options)


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
        source: Path of a video file, its bytes, or the open file, which must be able to seek.
        pick: Gets the clock and returns the numbers of the frames wanted, as in `read_frames`.
        use: Gets the frames with their numbers, rising, and the clock. It is called again, with the
            frames from the first on, where the file turns out to be without a sound index.
        start: Seconds after the first frame; None is the beginning.
        end: Seconds after the first frame, itself excluded; None is the end.
        name: What errors call it; "" derives it from `source`.

    Returns:
        What `use` returns.

    Raises:
        BadVideo: The file is missing, broken, truncated, or has no video or no frame in the range.
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
            demux.check_length(demux.read_head(source), container.size)
        stream = container.streams.video[0]
        plan = demux.scan(container, stream)
        shown = demux.inside(plan.times, stream, window)
        clock = Clock(plan.times, shown, stream)
        first = shown[0]
        wanted = [first + i for i in sorted(set(pick(clock)))]
        with contextlib.suppress(_SeekError):
            frames = _seek_and_decode(container, stream, plan, wanted)
            return use(((number - first, frame) for number, frame in frames), clock)
    with _open(source) as container:  # MPEG-TS has no index, AVI may lack time stamps
        frames = _decode_all(container, wanted)
        return use(((number - first, frame) for number, frame in frames), clock)


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
    for packet in demux.demux(container, stream):
        needless = skipping and packet.pts is not None and packet.pts not in wanted_times
        if mode != (mode := "NONREF" if needless else "DEFAULT"):
            context.skip_frame = mode
        yield from packet.decode()


def _decode_all(container, wanted):
    """Yields (number, frame) by counting the frames from the start."""
    waiting = iter(wanted)
    target = next(waiting)
    found = demux.demux(container, container.streams.video[0])
    frames = (frame for packet in found for frame in packet.decode())
    for number, frame in enumerate(frames):
        if number == target:
            yield number, frame
            target = next(waiting, None)
            if target is None:
                return
    raise BadVideo(f"frame {target} cannot be decoded")
