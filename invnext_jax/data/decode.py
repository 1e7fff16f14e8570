"""Exact frames from encoded video by PyAV, and which frames a clip takes.

A frame's number is its place in presentation order. One pass over the packets, without decoding,
finds the time stamps and key frames; the decoder then seeks only where a group of pictures can be
skipped. Frame counts of headers are never trusted for more than telling a truncated file.

Shape key: t frames, h w pixels, c channels.
"""

import bisect
import io
import math
import os
from collections.abc import Callable, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

av.logging.set_level(av.logging.PANIC)  # bad files are reported by BadVideo, once

MIN_PACKET_SHARE = 0.98  # of the header's frame count; fewer packets mean a truncated file


class BadVideo(Exception):  # noqa: N818, as short as it is common
    """A video that cannot be decoded; the text names it and the reason.

    Attributes:
        kind: The reason's class, one of a few words: "missing", "permission", "unreadable",
            "truncated", "no video stream", "unknown codec", "empty range" or "corrupt".
    """

    def __init__(self, text: str, kind: str = "corrupt"):
        super().__init__(text)
        self.kind = kind


class _SeekError(Exception):
    """Seeking did not lead to the frame asked for."""


def sample_sparse(frame_count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """Takes one frame from each of `frames` equal segments of a video.

    Args:
        frame_count: Frames of the video; fewer than `frames` are repeated in order.
        frames: Frames wanted.
        rng: Draws the place in each segment; None takes its centre.

    Returns:
        int64 [t], never falling.
    """
    place_t = np.full(frames, 0.5) if rng is None else rng.random(frames)
    index_t = ((np.arange(frames) + place_t) * frame_count / frames).astype(np.int64)
    return np.minimum(index_t, frame_count - 1)


def read_frames(
    source: str | os.PathLike | bytes,
    pick: Callable[[int], Sequence[int]],
    *,
    short_side: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Decodes the frames that `pick` chooses.

    Args:
        source: Path of a video file, or its bytes.
        pick: Gets the number of frames between `start` and `end` and returns the numbers of those
            wanted, counted from `start`, in any order and with repeats.
        short_side: Pixels that the shorter side is scaled down to; never up. None keeps the size.
        start: Seconds after the first frame; None is the beginning.
        end: Seconds after the first frame, itself excluded; None is the end.

    Returns:
        uint8 [t h w c], RGB, upright if the file says how the camera was turned.

    Raises:
        BadVideo: The file is missing, broken, truncated, or has no video or no frame in the range.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        return _read(source, pick, short_side, (start, end))
    except (av.FFmpegError, OSError, BadVideo) as error:
        if isinstance(error, BadVideo):
            raise BadVideo(f"{name}: {error}", error.kind) from error
        reason = f"{type(error).__name__}: {error}"
        raise BadVideo(f"{name}: {reason}", _kind_of(error)) from error


def _kind_of(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, av.EOFError):
        return "truncated"
    return "unreadable" if isinstance(error, OSError) else "corrupt"


def _read(source, pick, short_side, window) -> np.ndarray:
    with _open(source) as container:
        stream = container.streams.video[0]
        times, keys = _scan(container, stream)
        shown = _inside(times, stream, window)
        wanted = [shown[i] for i in pick(len(shown))]
        try:
            frames = _seek_and_decode(container, stream, times, keys, sorted(set(wanted)))
            images = _convert(frames, short_side)
        except _SeekError:
            images = None
    if images is None:  # rare: MPEG-TS seeks past the frame, AVI may lack time stamps
        with _open(source) as container:
            images = _convert(_decode_all(container, sorted(set(wanted))), short_side)
    return np.stack([images[i] for i in wanted])


def _open(source):
    # Titles in an odd encoding are no reason to refuse a video.
    file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
    container = av.open(file, metadata_errors="ignore")
    if not container.streams.video:
        container.close()
        raise BadVideo("no video stream", "no video stream")
    # One thread a video: the workers share the cores, and frame threads add delay to every seek.
    context = container.streams.video[0].codec_context
    if context is None:
        container.close()
        raise BadVideo("unknown codec", "unknown codec")
    context.thread_type, context.thread_count = "SLICE", 1
    return container


def _scan(container, stream) -> tuple[list[int | None], list[int]]:
    """Time stamps of all shown frames in presentation order, and those of the key frames."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    if len(packets) < MIN_PACKET_SHARE * stream.frames:
        raise BadVideo(f"truncated: {len(packets)} of {stream.frames} frames", "truncated")
    # An edit list marks what it cuts away; counting those would shift every number.
    packets = [packet for packet in packets if not packet.is_discard]
    if not packets:
        raise BadVideo("no frames")
    times = [packet.pts for packet in packets]
    if any(time is None for time in times):
        return [None] * len(times), []
    keys = sorted(packet.pts for packet in packets if packet.is_keyframe)
    return sorted(times), keys


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


def _seek_and_decode(container, stream, times, keys, wanted):
    """Yields (number, frame) for the sorted numbers `wanted`."""
    if not keys or len(set(times)) < len(times):
        raise _SeekError
    decoded, position = None, None
    for number in wanted:
        time = times[number]
        key = keys[max(0, bisect.bisect_right(keys, time) - 1)]
        if decoded is None or key > position:
            container.seek(key, stream=stream, backward=True)
            decoded = container.decode(stream)
        for frame in decoded:
            position = frame.pts
            if position is None or position > time:
                raise _SeekError
            if position == time:
                yield number, frame
                break
        else:
            raise _SeekError


def _decode_all(container, wanted):
    """Yields (number, frame) by counting the frames from the start."""
    waiting = iter(wanted)
    target = next(waiting)
    for number, frame in enumerate(container.decode(video=0)):
        if number == target:
            yield number, frame
            target = next(waiting, None)
            if target is None:
                return
    raise BadVideo(f"frame {target} cannot be decoded")


def _convert(frames, short_side) -> dict[int, np.ndarray]:
    """RGB arrays of decoded frames, all of the first one's size; scaling and colours in one go."""
    reformatter, images, size = VideoReformatter(), {}, None
    for number, frame in frames:
        if frame.is_corrupt:
            raise BadVideo(f"frame {number} is corrupt")
        if size is None:
            short = min(frame.width, frame.height)
            scale = min(1.0, short_side / short) if short_side else 1.0
            size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        rgb = reformatter.reformat(
            frame,
            width=size[0],
            height=size[1],
            format="rgb24",
            interpolation="BILINEAR",
            threads=1,  # starting threads takes longer than the work
        )
        image_hwc = rgb.to_ndarray()
        turns = frame.rotation // 90
        images[number] = np.rot90(image_hwc, turns) if turns else image_hwc
    return images
