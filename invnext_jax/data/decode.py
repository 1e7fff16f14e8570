"""Decodes frames of video files with PyAV; frame numbers are exact.

A frame's number is its position among the frames that ffmpeg shows, in presentation order and
after edit lists (see `frame_index`). The decoder seeks only if this skips a group of pictures
(GOP). A seek is trusted if it leads to an intra frame and no later frame up to the requested one is
corrupt. Otherwise decoding starts from an earlier key frame.

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

from invnext_jax import sanitize
from invnext_jax.video import demux, frame_index
from invnext_jax.video.demux import BadVideo
from invnext_jax.video.frame_converter import FrameConverter
from invnext_jax.video.frame_index import FrameTimes, PacketIndex

av.logging.set_level(av.logging.PANIC)  # errors are reported once, as BadVideo

# Codecs in which no frame depends on a non-reference frame. In HEVC, higher layers may do so.
SKIPPABLE = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
MAX_REPEATS = 2  # maximum number of further failures at the same frame


class _SeekError(Exception):
    """A seek did not reach the requested frame, or the frames after it may be wrong."""


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
      pick: Function that receives the number of frames between `start` and `end` and returns the
          numbers of the requested frames. They count from `start`, in any order; repeats are
          allowed.
      short_side: Target length of the shorter side in pixels. Smaller videos are not enlarged.
          None keeps the size.
      **options: `start`, `end` and `index`, as in `open_video`.

    Returns:
      uint8 [t h w c], RGB. Frames are upright if the file specifies an orientation.

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
    index: PacketIndex | None = None,
) -> Iterator["VideoReader"]:
    """Opens a video for reading. Decoding errors inside the `with` block are raised as `BadVideo`.

    Args:
      source: Path of a video file, its bytes, or a seekable open file.
      start: Start in seconds after the first frame. None is the beginning.
      end: Exclusive end in seconds after the first frame. None is the end.
      index: Index of the same file from an earlier `VideoReader.index`. None builds it.

    Yields:
      The reader.

    Raises:
      BadVideo: The file is missing, broken, truncated, or has no video or no frame in the range.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with demux.open_stream(file) as stream:
            yield VideoReader(file, stream, start, end, index)
    except BadVideo as error:
        raise BadVideo(f"{_name_source(source)}: {error}", error.kind) from error
    except (av.FFmpegError, OSError) as error:
        reason = f"{_name_source(source)}: {demux.describe_error(error)}"
        raise BadVideo(reason, demux.error_kind(error)) from error


class VideoReader:
    """Decodes frames of an open video by number; `open_video` creates it.

    Its length is the number of frames between `start` and `end`. Frame numbers count from `start`.

    Attributes:
      index: Index of the complete file.
      times: Time of each frame in seconds.
    """

    def __init__(self, source, stream, start, end, index: PacketIndex | None = None):
        if "matroska" in stream.container.format.name:
            demux.check_matroska_length(demux.read_head(source), stream.container.size)
        self._source, self._stream = source, stream
        if index is None:
            index = frame_index.build_index(source, stream)
        else:
            for packet in demux.demux(stream):
                demux.prime_decoder(stream, packet)
                break
        self.index = index
        numbers = frame_index.frames_between(index.times, stream, start, end)
        self._first, self.times = numbers[0], FrameTimes(index.times, numbers, stream)

    def __len__(self) -> int:
        return len(self.times)

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes each requested frame once.

        Args:
          numbers: Requested frame numbers in any order; repeats are allowed.

        Yields:
          (number, frame) in ascending order. If the times of the index turn out to be wrong, the
          sequence restarts from the first number, and the frames of the restart are correct.
        """
        requested = [self._first + number for number in sorted(set(numbers))]
        with contextlib.suppress(_SeekError):
            for number, frame in _seek_and_decode(self._stream, self.index, requested):
                yield number - self._first, frame
            return
        self._stream.container.close()
        with demux.open_stream(self._source) as stream:
            for number, frame in _decode_from_start(stream, self.index, requested):
                yield number - self._first, frame


def _name_source(source) -> str:
    """Returns the name of a source for error messages, without secrets from its URL."""
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    return sanitize.redact_urls(str(source.name if hasattr(source, "read") else source))


def _seek_and_decode(stream, index: PacketIndex, requested: Sequence[int]):
    """Yields (number, frame) for sorted numbers. Normally decodes each group of pictures once."""
    times, key_times = index.times, list(index.key_times)
    if not key_times:
        raise _SeekError
    # If a frame is stored as two fields, its two packets have different times, and only one of them
    # is the time of the frame.
    can_skip = not index.is_decoded
    requested_times = {times[number] for number in requested}
    group, last = None, -1
    for number in requested:
        time = times[number]
        key = key_times[max(0, bisect.bisect_right(key_times, time) - 1)]
        if time < key and can_skip:  # an edit list hides the first key frame
            key = times[0]
        # Frames already in the decoder's reorder buffer are cheaper to decode than to seek past.
        if group is None or bisect.bisect_left(times, key) - last - 1 > index.reorder_delay:
            group = _Group(stream, key, requested_times, can_skip, key not in key_times)
        step, failure, repeats = 1, None, 0
        while True:
            try:
                frame = group.decode_until(time)
                break
            except (_SeekError, BadVideo, av.InvalidDataError) as error:
                place = (type(error), group.position)
                repeats = repeats + 1 if place == failure and group.is_clean else 0
                if repeats == MAX_REPEATS and not isinstance(error, _SeekError):
                    raise  # the frame itself is damaged
                failure, position = place, bisect.bisect_left(key_times, group.key)
                if not position:
                    raise _SeekError from error
                # It is not a true key frame, or later frames refer to frames before it.
                earlier = max(0, position - step)
                del key_times[earlier + 1 : position + 1]
                group = _Group(stream, key_times[earlier], requested_times, can_skip)
                step *= 2
        yield number, frame
        last = number


class _Group:
    """Decodes frames starting from a key frame; `decode_until` checks them.

    Attributes:
      key: Time stamp of the key frame, or of the first frame if an edit list hides the key frame
          (`is_start`).
      position: Time stamp of the last decoded frame.
      is_clean: Whether the key frame was decoded and really is a key frame.
    """

    def __init__(self, stream, key: int, requested_times, can_skip: bool, is_start: bool = False):
        stream.container.seek(key, stream=stream, backward=True)
        self._frames = _decode(stream, requested_times if can_skip else None, is_start)
        self.key, self.position, self.is_clean, self._is_start = key, None, is_start, is_start

    def decode_until(self, time: int) -> av.VideoFrame:
        """Returns the frame with the given time stamp.

        Raises:
          _SeekError: The frame was not found, or the key frame is not really one.
          BadVideo: A frame between the key frame and the requested frame is corrupt.
        """
        for frame in self._frames:
            if frame.pts is None or (self.position is not None and frame.pts <= self.position):
                raise _SeekError
            self.position = frame.pts
            # Frames decoded before the key frame are unreliable and were not requested.
            if frame.pts == self.key and not self._is_start:
                self.is_clean = frame_index.is_intra(frame)
            if frame.pts >= self.key and not self.is_clean:
                raise _SeekError
            if frame.pts >= self.key and frame.is_corrupt:
                raise BadVideo("a frame is corrupt")
            if frame.pts >= time:
                break
        if self.position != time or not self.is_clean:
            raise _SeekError
        return frame


def _decode(stream, requested_times, is_start: bool = False):
    """Yields frames from the current position.

    Frames outside `requested_times` may be skipped, unless it is None.

    If `is_start`, the first packet must be an intra packet.
    """
    context = stream.codec_context
    # In AVI, a packet may contain the frame that belongs to the next packet's time stamp.
    can_skip = context.name in SKIPPABLE and stream.container.format.name != "avi"
    can_skip = can_skip and requested_times is not None
    mode = "DEFAULT"
    for packet in demux.demux(stream):
        if is_start and not frame_index.is_intra_packet(stream, packet):
            raise _SeekError
        is_start = False
        skip = can_skip and packet.pts is not None and packet.pts not in requested_times
        if mode != (mode := "NONREF" if skip else "DEFAULT"):
            context.skip_frame = mode
        yield from packet.decode()
    yield from context.decode(None)


def _decode_from_start(stream, index: PacketIndex, requested: Sequence[int]):
    """Yields (number, frame) for sorted numbers by decoding all frames from the start."""
    remaining = iter(requested)
    target, is_damaged = next(remaining), False
    for position, (_, frame) in enumerate(demux.decode_all(stream)):
        # A corrupt frame also damages the frames that refer to it.
        is_damaged = frame.is_corrupt or (is_damaged and not frame_index.is_intra(frame))
        if position == target if index.is_decoded else frame.pts == index.times[target]:
            if is_damaged:
                raise BadVideo(f"frame {target} is corrupt")
            yield target, frame
            target = next(remaining, None)
            if target is None:
                return
    raise BadVideo(f"frame {target} cannot be decoded")
