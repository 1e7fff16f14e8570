"""Probes video files in worker processes: finds properties of good files and rejects bad ones."""

import bisect
import contextlib
import dataclasses
import errno
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorTrc

from invnext_jax.data import decode, index_files, video_io
from invnext_jax.data.video_io import digest_file
from invnext_jax.dataset_prep import video_flags
from invnext_jax.dataset_prep.worker_map import WorkerFailure, map_in_workers
from invnext_jax.video import demux
from invnext_jax.video.frame_converter import FrameConverter, Orientation
from invnext_jax.workers.results import register_result_type
from invnext_jax.workers.time_limits import reading

MAX_TAIL = 1000  # maximum number of frames decoded after the last key frame
MAX_HEAD = 60  # maximum number of frames decoded to check an early seek
CHECK_SIDE = 32  # short side in pixels of the frames that are compared
# Names of transfer functions. The first two, PQ and HLG, are used for HDR video.
TRANSFERS = {
    ColorTrc.SMPTE2084: "pq",
    ColorTrc.ARIB_STD_B67: "hlg",
    ColorTrc.LINEAR: "linear",
    **dict.fromkeys((ColorTrc.BT709, ColorTrc.SMPTE170M, ColorTrc.IEC61966_2_1), "sdr"),
    **dict.fromkeys((ColorTrc.BT2020_10, ColorTrc.BT2020_12), "sdr"),
}
MAX_RATE_ERROR = 0.02  # maximum relative error of the header's frame rate
MAX_RATE = 480.0  # frames per second; without time stamps, a higher rate is not used
MIN_ZEROS = 16  # bytes; some encoders write shorter packets of zeros for repeated frames
TRANSIENT_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENOMEM}
TRANSIENT_ERRNOS |= {errno.EMFILE}


@register_result_type
@dataclasses.dataclass(frozen=True)
class VideoProbe:
    """Properties of a video that can be decoded.

    Attributes:
      duration: Duration in seconds, including that of the last frame.
      frames: Number of displayed frames as counted by ffmpeg, which may differ from the header.
      width: Width in pixels as stored, before rotation.
      height: Height in pixels as stored, before rotation.
      fps: Average frames per second.
      codec: FFmpeg's name of the decoder.
      rotation: Counter-clockwise rotation in degrees that players apply to the frames.
      digest: Hash of the size, the beginning and the end of the file.
      mirrored: Whether players also mirror the frames.
      sar: Sample aspect ratio, the width to height of a pixel; "1:1" for square pixels or if
          unknown.
      transfer: Transfer function: "sdr", "pq", "hlg", "linear", or "" if the file has none.
      flags: Words separated by spaces: "one_frame"; "tiny" if the frames are smaller than the
          patch grid; "expensive" if decoding a clip takes more than about one second.
      index: Encoded frame index, see `index_files.encode_index`; "" if it is fast to build, or too
          long to be stored.
    """

    duration: float
    frames: int
    width: int
    height: int
    fps: float
    codec: str
    rotation: int
    digest: str
    mirrored: bool = False
    sar: str = "1:1"
    transfer: str = ""
    flags: str = ""
    index: str = ""


@register_result_type
@dataclasses.dataclass(frozen=True)
class ProbeFailure:
    """Reason why a file cannot be used.

    Attributes:
      reason: Description for the quarantine list.
      timeout: Time limit in seconds that was exceeded, or None.
      transient: Whether a retry may succeed, because the cause may be the machine or the network.
      read_error: Whether a read of the file failed.
    """

    reason: str
    timeout: float | None = None
    transient: bool = False
    read_error: bool = False


def probe_video(path: str) -> VideoProbe:
    """Probes a file: finds its frames, then decodes the first and the last key frame.

    Raises:
      BadVideo: The file is missing, empty, damaged, truncated or encrypted, or has no video; or a
          seek leads to a different frame than decoding from the start.
    """
    with video_io.open_source(path) as source:
        status = os.fstat(source.fileno())
        try:
            return _probe(path, source, video_io.file_version(status))
        except decode.BadVideo as error:
            if size := _tiny_size(source):
                raise decode.BadVideo(f"{path}: frames of {size} are too small") from error
            raise


def _probe(path: str, source: BinaryIO, version: index_files.Version) -> VideoProbe:
    try:
        fields = _read_header(path, source)
    except (av.FFmpegError, OSError) as error:
        raise decode.BadVideo(f"{path}: {demux.describe_error(error)}") from error
    with decode.open_video(source) as video:
        fields |= _read_timing(video, fields["fps"])
        keys = [bisect.bisect_left(video.index.times, key) for key in video.index.key_times] or [0]
        frames_hwc = _decode_ends(video, keys, fields)
        index = video.index
    _check_seeks(path, source, index, keys, frames_hwc)
    flags = video_flags.find_flags(index, fields["width"], fields["height"])
    stored = index_files.encode_index(index, version) if index_files.is_slow(index) else ""
    with reading():
        digest = digest_file(path)
    return VideoProbe(digest=digest, flags=flags, index=stored, **fields)


def _tiny_size(source: BinaryIO) -> str:
    """Returns the frame size if it is so small that some decoders reject it, otherwise ""."""
    errors = decode.BadVideo, av.FFmpegError, OSError
    with contextlib.suppress(*errors), demux.open_stream(source) as stream:
        if 0 < min(stream.width, stream.height) < video_flags.MIN_SIDE:
            return f"{stream.width} x {stream.height}"
    return ""


def _read_header(path: str, source: BinaryIO) -> dict[str, Any]:
    """Returns the properties from the header, and checks that no packet is zeros or encrypted."""
    with demux.open_stream(source) as stream:
        context = stream.codec_context
        for packet in demux.demux(stream):
            if packet.has_sidedata("encryption_info"):
                raise decode.BadVideo(f"{path}: encrypted")
            # The file of an interrupted download may have the full length but end in zeros.
            if context.name != "rawvideo" and not _has_data(packet):
                raise decode.BadVideo(f"{path}: zeros in place of frames")
        ratio, transfer = stream.sample_aspect_ratio or 1, context.color_trc
        return {
            "fps": float(stream.average_rate or 0),
            "codec": context.name,
            "sar": f"{ratio.numerator}:{ratio.denominator}",
            "transfer": TRANSFERS.get(transfer, ""),
        }


def _read_timing(video: decode.VideoReader, rate: float) -> dict[str, Any]:
    """Returns `frames`, `duration` and `fps`; `rate` is the frame rate in the header, or 0.

    The rate in the header is used only if it agrees with the time stamps of the frames.
    """
    count, span = len(video), video.times[len(video) - 1]
    duration = count / (rate or 25.0)
    if video.index.times[0] is not None and span > 0:
        measured = (count - 1) / span
        if not rate or abs(rate - measured) > MAX_RATE_ERROR * measured:
            rate = measured
        duration = span + 1 / rate
    elif rate > MAX_RATE:
        rate, duration = 0.0, count / 25.0
    if duration >= 2**31:  # 68 years; tables have smaller numbers
        raise decode.BadVideo(f"its time stamps mean a duration of {duration:.3g} seconds")
    return {"frames": count, "duration": round(duration, 3), "fps": round(rate or 25.0, 3)}


def _decode_ends(
    video: decode.VideoReader, keys: Sequence[int], fields: dict[str, Any]
) -> dict[int, np.ndarray]:
    """Returns the pixels of the first frame and of the last key frame, by frame number.

    Adds the geometry to `fields`.
    """
    # A damaged file may lack key frames at its end. If the last group of pictures is longer than
    # all others, its last frame is decoded too.
    tail = len(video) - 1 - keys[-1]
    longest = max(map(operator.sub, keys[1:], keys), default=0)
    requested = [0, keys[-1]] + [len(video) - 1] * (longest < tail <= MAX_TAIL)
    convert, frames_hwc = FrameConverter(CHECK_SIDE), {}
    for number, frame in video.frames(requested):
        frames_hwc[number] = convert(number, frame)
        if number == 0:
            orientation = Orientation.of_frame(frame)
            fields |= {"width": frame.width, "height": frame.height, "rotation": frame.rotation}
            fields["mirrored"] = orientation.is_mirrored
    return frames_hwc


def _check_seeks(
    path: str,
    source: BinaryIO,
    index: decode.PacketIndex,
    keys: Sequence[int],
    frames_hwc: dict[int, np.ndarray],
) -> None:
    """Checks seeks to the last and to an early key frame, each in a newly opened file.

    The last key frame must equal the one in `frames_hwc`. The early key frame must equal the result
    of decoding from the start.

    Raises:
      BadVideo: A seek leads to a different frame.
    """
    early = max((key for key in keys if key <= MAX_HEAD), default=0)
    expected = {keys[-1]: frames_hwc[keys[-1]]}
    if early:
        sequential = dataclasses.replace(index, key_times=())
        expected[early] = _read_frame(source, early, sequential)
    for number, frame_hwc in expected.items():
        if number and not np.array_equal(_read_frame(source, number, index), frame_hwc):
            reason = f"a seek to frame {number} leads to a different frame than decoding in order"
            raise decode.BadVideo(f"{path}: {reason}")


def _read_frame(source: BinaryIO, number: int, index: decode.PacketIndex) -> np.ndarray:
    return decode.read_frames(source, lambda _: [number], short_side=CHECK_SIDE, index=index)[0]


def _has_data(packet: av.Packet) -> bool:
    return packet.size < MIN_ZEROS or any(memoryview(packet))


def probe_all(
    paths: Sequence[str],
    *,
    workers: int,
    timeout: float,
    probe: Callable[[str], VideoProbe] = probe_video,
) -> Iterator[tuple[str, VideoProbe | ProbeFailure]]:
    """Probes files in worker processes; a hang or a crash affects only the current file.

    Args:
      paths: Paths of the video files.
      workers: Maximum number of processes.
      timeout: Time limit per file in seconds.
      probe: Function of a path. It must be defined in an importable module.

    Yields:
      Each path with its result, in the order of `paths`.
    """
    results = map_in_workers(
        _SafeProbe(probe),
        [(path,) for path in paths],
        workers=workers,
        timeout=timeout,
        ahead=len(paths),  # results are small, and a slow file must not delay the others
        find_error=_find_error,
    )
    with contextlib.closing(results):
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, WorkerFailure):
                limit = timeout if result.timed_out else None
                result = ProbeFailure(result.reason, limit, transient=not result.timed_out)
            yield path, result


def _find_error(result: VideoProbe | ProbeFailure) -> str:
    return result.reason if isinstance(result, ProbeFailure) and result.read_error else ""


@dataclasses.dataclass(frozen=True)
class _SafeProbe:
    """Probes a file in a worker process and returns errors as failures."""

    probe: Callable[[str], VideoProbe]

    def __call__(self, path: str) -> VideoProbe | ProbeFailure:
        try:
            return self.probe(path)
        except decode.BadVideo as error:
            read_error = error.kind == "unreadable"
            transient = read_error or getattr(error.__cause__, "errno", None) in TRANSIENT_ERRNOS
            reason = str(error).removeprefix(f"{path}: ")
            return ProbeFailure(reason, transient=transient, read_error=read_error)
        except OSError as error:
            read_error = demux.error_kind(error) == "unreadable"
            return ProbeFailure(error.strerror or str(error), transient=True, read_error=read_error)
        except Exception as error:  # a bug must not end the indexing of a data set
            return ProbeFailure(f"{type(error).__name__}: {error}", transient=True)

    def is_valid(self, result: Any, path: str) -> bool:
        """Returns whether a worker's result has the type of `__call__`."""
        del path
        flags = result.flags if isinstance(result, VideoProbe) else ""
        return isinstance(result, VideoProbe | ProbeFailure) and video_flags.are_flags(flags)
