"""Probes video files in worker processes: properties of good files, and reasons for bad ones."""

import contextlib
import dataclasses
import errno
import functools
import operator
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av

from invnext_jax.data import decode, demux
from invnext_jax.data.content_digest import digest_file
from invnext_jax.dataset_prep.worker_map import WorkerFailure, map_in_workers

MAX_TAIL = 1000  # maximum number of frames decoded after the last key frame
MIN_ZEROS = 16  # bytes; for repeated frames, some encoders write packets of fewer zeros
TRANSIENT_ERRNOS = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENOMEM, errno.EMFILE),
)


@dataclasses.dataclass(frozen=True)
class VideoProbe:
    """Properties of a video that can be decoded.

    Attributes:
        duration: Duration in seconds, including that of the last frame.
        frames: Number of displayed frames, counted from the packets instead of the header.
        width: Width in pixels as stored, before rotation.
        height: Height in pixels as stored, before rotation.
        fps: Average frames per second.
        codec: FFmpeg's name of the decoder.
        rotation: Degrees by which players rotate the picture, counter-clockwise.
        digest: Hash of the size, the beginning and the end of the file.
    """

    duration: float
    frames: int
    width: int
    height: int
    fps: float
    codec: str
    rotation: int
    digest: str


@dataclasses.dataclass(frozen=True)
class ProbeFailure:
    """Reason why a file cannot be used.

    Attributes:
        reason: Description for the quarantine list.
        timeout: Time limit in seconds that was exceeded, or None.
        transient: Whether a retry may succeed because the machine or network may be the cause.
        read_error: Whether a read of the file failed.
    """

    reason: str
    timeout: float | None = None
    transient: bool = False
    read_error: bool = False


def probe_video(path: str) -> VideoProbe:
    """Counts the packets, then decodes the first and the last key frame as in training.

    Raises:
        BadVideo: The file is missing, empty, damaged, truncated, or has no video.
    """
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            raise decode.BadVideo(f"{path}: empty file")
        fields, key_frames = _scan_packets(path)
        fields |= _read_geometry(path)
    except (av.FFmpegError, OSError) as error:
        raise decode.BadVideo(f"{path}: {type(error).__name__}: {error}") from error
    counts = []

    def pick(count: int) -> list[int]:
        counts.append(count)
        # Key frames may be missing in a damaged file. If the group after the last key frame is
        # longer than all others, its last frame is decoded too.
        tail = count - 1 - key_frames[-1]
        longest = max(map(operator.sub, key_frames[1:], key_frames), default=0)
        decode_tail = longest < tail <= MAX_TAIL
        return [0, min(key_frames[-1], count - 1)] + [count - 1] * decode_tail

    decode.read_frames(path, pick, short_side=32)
    return VideoProbe(frames=counts[0], digest=digest_file(path), **fields)


def _open(path: str) -> av.container.InputContainer:
    container = av.open(path, metadata_errors="ignore")
    if not container.streams.video or container.streams.video[0].codec_context is None:
        reason = "unknown codec" if container.streams.video else "no video stream"
        container.close()
        raise decode.BadVideo(f"{path}: {reason}")
    return container


def _scan_packets(path: str) -> tuple[dict[str, Any], list[int]]:
    """Returns duration, fps and codec, and the numbers of the key frames."""
    with _open(path) as container:
        stream = container.streams.video[0]
        # Packets are not kept, because they would hold the complete file in memory.
        shown = [
            (packet.pts, packet.is_keyframe, _has_data(packet))
            for packet in demux.demux(container, stream)
            if packet.size and not packet.is_discard
        ]
        codec, rate = stream.codec_context.codec.name, float(stream.average_rate or 0)
        time_base = stream.time_base
    if not shown:
        raise decode.BadVideo(f"{path}: no frames")
    # The file of an interrupted download may have its full length but end in zeros.
    if codec != "rawvideo" and not all(has_data for _, _, has_data in shown):
        raise decode.BadVideo(f"{path}: zeros in place of frames")
    times = sorted(pts for pts, _, _ in shown if pts is not None)
    key_times = {pts for pts, is_key, _ in shown if is_key}
    duration = len(shown) / (rate or 25.0)
    if len(times) == len(shown) and times[-1] > times[0]:
        span = float((times[-1] - times[0]) * time_base)
        rate = rate or (len(shown) - 1) / span
        duration = span + 1 / rate
    key_frames = [number for number, pts in enumerate(times) if pts in key_times] or [0]
    fields = {"duration": round(duration, 3), "fps": round(rate or 25.0, 3), "codec": codec}
    return fields, key_frames


def _read_geometry(path: str) -> dict[str, int]:
    """Returns width, height and rotation of the first frame."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
        packets = demux.demux(container, stream)
        first = next((frame for packet in packets for frame in packet.decode()), None)
        if first is None:
            raise decode.BadVideo(f"{path}: no frame can be decoded")
        return {"width": first.width, "height": first.height, "rotation": first.rotation}


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
        probe: Function of a path; must be defined in an importable module.

    Yields:
        Each path with its result, in the order of `paths`.
    """
    results = map_in_workers(
        functools.partial(_probe_safely, probe),
        [(path,) for path in paths],
        workers=workers,
        timeout=timeout,
        ahead=len(paths),  # results are small, and a slow file must not delay the others
        is_read_error=lambda result: isinstance(result, ProbeFailure) and result.read_error,
    )
    with contextlib.closing(results):
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, WorkerFailure):
                limit = timeout if result.timed_out else None
                result = ProbeFailure(result.reason, limit, transient=not result.timed_out)
            yield path, result


def _probe_safely(probe: Callable[[str], VideoProbe], path: str) -> VideoProbe | ProbeFailure:
    """Probes a file in a worker process and returns errors as failures."""
    try:
        return probe(path)
    except decode.BadVideo as error:
        read_error = error.kind == "unreadable"
        transient = read_error or getattr(error.__cause__, "errno", None) in TRANSIENT_ERRNOS
        reason = str(error).removeprefix(f"{path}: ")
        return ProbeFailure(reason, transient=transient, read_error=read_error)
    except Exception as error:
        # Damaged headers cause these two exceptions; any other one may be a bug.
        from_header = isinstance(error, ValueError | ArithmeticError)
        return ProbeFailure(f"{type(error).__name__}: {error}", transient=not from_header)
