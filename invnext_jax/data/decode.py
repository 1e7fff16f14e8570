"""Decodes frames of video files with PyAV; frame numbers are exact.

A frame's number is its position in presentation order. One pass over the packets, without decoding,
finds time stamps and key frames (see `demux`). The decoder then seeks only where a seek skips a
group of pictures.

Shape key: t frames, h w pixels, c channels.
"""

import bisect
import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import av
import numpy as np

from invnext_jax.data import demux
from invnext_jax.data.demux import BadVideo, FrameTimes, PacketIndex
from invnext_jax.data.transforms import FrameConverter

av.logging.set_level(av.logging.PANIC)  # errors are reported once, as BadVideo

MAX_PIXELS = 2**26  # limit per frame, twice 8K. A damaged header may claim far more.
# Codecs in which no frame refers to a frame marked as non-reference. HEVC's higher layers may.
SKIPPABLE = ("h264", "mpeg4", "mpeg2video", "mpeg1video")


class _SeekError(Exception):
    """Seeking did not lead to the requested frame."""


def read_frames(
    source: str | os.PathLike | bytes | BinaryIO,
    pick: Callable[[int], Sequence[int]],
    *,
    short_side: int | None = None,
    **options,
) -> np.ndarray:
    """Decodes the frames that `pick` chooses.

    Args:
        source: As in `open_video`.
        pick: Function of the number of frames between `start` and `end`. It returns the numbers of
            the requested frames, counted from `start`, in any order; repeats are allowed.
        short_side: Target length of the shorter side in pixels. Smaller videos are not enlarged.
            None keeps the size.
        **options: `start`, `end` and `name`, as in `open_video`.

    Returns:
        uint8 [t h w c], RGB, rotated upright if the file specifies a rotation.

    Raises:
        BadVideo: As in `open_video`.
    """
    convert, frames_thwc = FrameConverter(short_side), None
    with open_video(source, **options) as video:
        number_t = np.asarray(pick(len(video)))
        for number, frame in video.frames(number_t.tolist()):
            image_hwc = convert(number, frame)
            if frames_thwc is None:
                frames_thwc = np.empty((len(number_t), *image_hwc.shape), np.uint8)
            frames_thwc[number_t == number] = image_hwc
    return frames_thwc


@contextlib.contextmanager
def open_video(
    source: str | os.PathLike | bytes | BinaryIO,
    *,
    start: float | None = None,
    end: float | None = None,
    name: str = "",
) -> Iterator["VideoReader"]:
    """Opens a video for reading. Decoding errors inside the `with` block are raised as `BadVideo`.

    Args:
        source: Path of a video file, its bytes, or a seekable open file.
        start: Start in seconds after the first frame. None is the beginning.
        end: Exclusive end in seconds after the first frame. None is the end.
        name: Name of the video in error messages. "" derives it from `source`.

    Yields:
        The reader.

    Raises:
        BadVideo: The file is missing, broken, truncated, or has no video or no frame in the range.
    """
    if isinstance(source, bytes):
        name, source = name or f"{len(source)} bytes", io.BytesIO(source)
    else:
        name = name or (source.name if hasattr(source, "read") else os.fspath(source))
        if not hasattr(source, "read"):  # FFmpeg takes the start of "a:b.mp4" for a protocol
            source = os.path.abspath(source)
    try:
        with _open_container(source) as container:
            yield VideoReader(source, container, start, end)
    except BadVideo as error:
        raise BadVideo(f"{name}: {error}", error.kind) from error
    except (av.FFmpegError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadVideo(f"{name}: {reason}", error_kind(error)) from error


class VideoReader:
    """Decodes frames of an open video by number; `open_video` creates it.

    Its length is the number of frames between `start` and `end`. Frame numbers count from `start`.

    Attributes:
        times: Time of each frame in seconds.
    """

    def __init__(self, source, container, start: float | None, end: float | None):
        if "matroska" in container.format.name:
            demux.check_matroska_length(demux.read_head(source), container.size)
        self._source, self._container = source, container
        stream = container.streams.video[0]
        self._index = demux.scan_packets(container, stream)
        numbers = demux.frames_between(self._index.times, stream, start, end)
        self._first, self.times = numbers[0], FrameTimes(self._index.times, numbers, stream)

    def __len__(self) -> int:
        return len(self.times)

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes each requested frame once.

        Args:
            numbers: Requested frame numbers in any order; repeats are allowed.

        Yields:
            (number, frame) in ascending order. If the packet index turns out to be wrong, the
            sequence restarts from the first number, and the frames of the restart are correct.
        """
        requested = [self._first + number for number in sorted(set(numbers))]
        with contextlib.suppress(_SeekError):
            for number, frame in _seek_and_decode(self._container, self._index, requested):
                yield number - self._first, frame
            return
        self._container.close()
        # MPEG-TS has no index, and AVI may lack time stamps.
        with _open_container(self._source) as container:
            for number, frame in _decode_from_start(container, requested):
                yield number - self._first, frame


def error_kind(error: Exception) -> str:
    """Returns the `BadVideo.kind` of an error that a file system or decoder raised."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, av.EOFError):
        return "truncated"
    return "unreadable" if isinstance(error, OSError) else "corrupt"


def _open_container(source):
    if hasattr(source, "read"):
        source.seek(0)
    # Metadata in an unknown encoding does not make a video bad.
    container = av.open(source, metadata_errors="ignore")
    if not container.streams.video:
        container.close()
        raise BadVideo("no video stream", "no video stream")
    # One thread per video: the workers share the cores, and frame threading slows down each seek.
    context = container.streams.video[0].codec_context
    if context is None:
        container.close()
        raise BadVideo("unknown codec", "unknown codec")
    context.thread_type, context.thread_count = "SLICE", 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return container


def _seek_and_decode(container, index: PacketIndex, requested: Sequence[int]):
    """Yields (number, frame) for sorted numbers; each group of pictures is decoded at most once."""
    stream, times, key_times = container.streams.video[0], index.times, index.key_times
    if not key_times:
        raise _SeekError
    requested_times = {times[number] for number in requested}
    decoded, position, last = None, None, -1
    for number in requested:
        time = times[number]
        key = key_times[max(0, bisect.bisect_right(key_times, time) - 1)]
        # Frames already in the decoder's reorder buffer are cheaper to decode than to seek past.
        if decoded is None or bisect.bisect_left(times, key) - last - 1 > index.reorder_delay:
            container.seek(key, stream=stream, backward=True)
            decoded, position, after_key = _decode(container, stream, requested_times), None, False
        for frame in decoded:
            if frame.pts is None or (position is not None and frame.pts <= position):
                raise _SeekError
            position = frame.pts
            # Frames decoded before any key frame are unreliable.
            after_key = after_key or position == key
            if position > time or (position == time and not after_key):
                raise _SeekError
            if position == time:
                yield number, frame
                break
        else:
            raise _SeekError
        last = number


def _decode(container, stream, requested_times):
    """Yields frames from the current position; may skip frames that are not requested."""
    context = stream.codec_context
    # In AVI, a packet may contain the frame that belongs to the next packet's time stamp.
    can_skip = context.name in SKIPPABLE and container.format.name != "avi"
    mode = "DEFAULT"
    for packet in demux.demux(container, stream):
        skip = can_skip and packet.pts is not None and packet.pts not in requested_times
        if mode != (mode := "NONREF" if skip else "DEFAULT"):
            context.skip_frame = mode
        yield from packet.decode()


def _decode_from_start(container, requested: Sequence[int]):
    """Yields (number, frame) for sorted numbers by counting the frames from the start."""
    remaining = iter(requested)
    target = next(remaining)
    packets = demux.demux(container, container.streams.video[0])
    frames = (frame for packet in packets for frame in packet.decode())
    for number, frame in enumerate(frames):
        if number == target:
            yield number, frame
            target = next(remaining, None)
            if target is None:
                return
    raise BadVideo(f"frame {target} cannot be decoded")
