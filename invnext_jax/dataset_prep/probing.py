"""What a video file is and whether it can be decoded, found out in processes that may be killed."""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import operator
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av

from invnext_jax.data import decode, demux
from invnext_jax.data.worker_pool import SupervisedWorker
from invnext_jax.data.workers import (
    ProcessWorker,
    TimeLimitError,
    WorkerClosedError,
    WorkerDiedError,
)

DIGEST_BYTES = 1 << 16  # read at either end of a file, to tell copies
MAX_TAIL = 1000  # frames without a key frame that are decoded to the last
MIN_ZEROS = 16  # bytes; some encoders write less for a frame that is the one before
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENOMEM, errno.EMFILE)


@dataclasses.dataclass(frozen=True)
class VideoProbe:
    """What was found out about a good video.

    Attributes:
        duration: Seconds, the last frame's own time included.
        frames: Frames shown; packets counted, headers not believed.
        width: Pixels as stored, before any turn.
        height: As `width`.
        fps: Average frames a second.
        codec: FFmpeg's name of the decoder.
        rotation: Degrees that players turn the picture by, counter-clockwise.
        digest: Equal for files of the same size, beginning and end.
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
    """Why a file is of no use.

    Attributes:
        reason: A phrase.
        seconds: The limit that it hung beyond, else None.
        passing: Whether it may be the machine's fault, and gone the next time.
    """

    reason: str
    seconds: float | None = None
    passing: bool = False


def probe_video(path: str) -> VideoProbe:
    """Counts the packets, then decodes the first and the last key frame as training does.

    Raises:
        BadVideo: The file is missing, empty, broken, truncated, or has no video.
    """
    try:
        about = os.stat(path)
        if stat.S_ISREG(about.st_mode) and not about.st_size:
            raise decode.BadVideo(f"{path}: empty file")
        facts, keys = _scan(path)
        facts |= _look(path)
    except (av.FFmpegError, OSError) as error:
        raise decode.BadVideo(f"{path}: {type(error).__name__}: {error}") from error
    counts = []

    def pick(count: int) -> list[int]:
        counts.append(count)
        # Damage can make key frames look like others: an odd tail is decoded to its end.
        tail, usual = count - 1 - keys[-1], max(map(operator.sub, keys[1:], keys), default=0)
        odd = usual < tail <= MAX_TAIL
        return [0, min(keys[-1], count - 1)] + [count - 1] * odd

    decode.read_frames(path, pick, short_side=32)
    return VideoProbe(frames=counts[0], digest=_digest(path), **facts)


def _open(path: str) -> av.container.InputContainer:
    container = av.open(path, metadata_errors="ignore")
    if not container.streams.video or container.streams.video[0].codec_context is None:
        what = "unknown codec" if container.streams.video else "no video stream"
        container.close()
        raise decode.BadVideo(f"{path}: {what}")
    return container


def _scan(path: str) -> tuple[dict[str, Any], list[int]]:
    """What the packets tell, without trust in the header; and the numbers of the key frames."""
    with _open(path) as container:
        stream = container.streams.video[0]
        # The packets themselves are let go one by one: all of them would be the whole file.
        shown = [
            (packet.pts, packet.is_keyframe, _holds_data(packet))
            for packet in demux.demux(container, stream)
            if packet.size and not packet.is_discard
        ]
        codec, rate = stream.codec_context.codec.name, float(stream.average_rate or 0)
        tick = stream.time_base
    if not shown:
        raise decode.BadVideo(f"{path}: no frames")
    # Downloads that were broken off may have their full length.
    if codec != "rawvideo" and not all(holds_data for _, _, holds_data in shown):
        raise decode.BadVideo(f"{path}: zeros in place of frames")
    times = sorted(pts for pts, _, _ in shown if pts is not None)
    key_times = {pts for pts, is_key, _ in shown if is_key}
    duration = len(shown) / (rate or 25.0)
    if len(times) == len(shown) and times[-1] > times[0]:
        span = float((times[-1] - times[0]) * tick)
        rate = rate or (len(shown) - 1) / span
        duration = span + 1 / rate
    keys = [number for number, pts in enumerate(times) if pts in key_times] or [0]
    return {"duration": round(duration, 3), "fps": round(rate or 25.0, 3), "codec": codec}, keys


def _look(path: str) -> dict[str, int]:
    """What the first frame tells."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
        found = demux.demux(container, stream)
        first = next((frame for packet in found for frame in packet.decode()), None)
        if first is None:
            raise decode.BadVideo(f"{path}: no frame can be decoded")
        return {"width": first.width, "height": first.height, "rotation": first.rotation}


def _holds_data(packet: av.Packet) -> bool:
    return packet.size < MIN_ZEROS or any(memoryview(packet))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(0, size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()


def probe_all(
    paths: Iterable[str],
    *,
    workers: int,
    seconds: float,
    probe: Callable[[str], VideoProbe] = probe_video,
) -> Iterator[tuple[str, VideoProbe | ProbeFailure]]:
    """Probes files in processes; one that hangs or crashes is ended and costs its file alone.

    Args:
        paths: Files.
        workers: Processes.
        seconds: Limit for a file.
        probe: What is done with a file; it must be importable by its name.

    Yields:
        Each path with what was found, in the order in which the files are done.
    """
    waiting, found = queue.SimpleQueue(), queue.SimpleQueue()
    for path in paths:
        waiting.put(path)
    count = waiting.qsize()
    make_worker = functools.partial(ProcessWorker, functools.partial(_answer, probe))
    with contextlib.ExitStack() as stack:
        for _ in range(min(workers, count)):
            seat = SupervisedWorker(make_worker, seconds, tries=1)
            stack.callback(seat.close)
            look = functools.partial(_look_at, seat, seconds)
            threading.Thread(target=_serve, args=(look, waiting, found), daemon=True).start()
        for _ in range(count):
            result = found.get()
            if isinstance(result, Exception):
                raise result
            yield result


def _serve(
    look: Callable[[str], VideoProbe | ProbeFailure],
    waiting: queue.SimpleQueue,
    found: queue.SimpleQueue,
) -> None:
    """Looks at what waits, file by file, until nothing does or all is closed."""
    try:
        while True:
            path = waiting.get_nowait()
            found.put((path, look(path)))
    except (queue.Empty, WorkerClosedError):
        return
    except Exception as error:  # raised again in `probe_all`
        found.put(error)


def _look_at(seat: SupervisedWorker, seconds: float, path: str) -> VideoProbe | ProbeFailure:
    try:
        return seat.call(path)
    except TimeLimitError:
        return ProbeFailure(f"no answer in {seconds:g} seconds", seconds)
    except WorkerDiedError as error:
        return ProbeFailure(f"the decoder crashed ({error})", passing=True)


def _answer(probe: Callable[[str], VideoProbe], path: str) -> VideoProbe | ProbeFailure:
    """What a worker process finds out about a file."""
    try:
        return probe(path)
    except decode.BadVideo as error:
        passing = getattr(error.__cause__, "errno", None) in PASSING
        return ProbeFailure(str(error).removeprefix(f"{path}: "), passing=passing)
    except Exception as error:
        of_odd_headers = isinstance(error, ValueError | ArithmeticError)
        return ProbeFailure(f"{type(error).__name__}: {error}", passing=not of_odd_headers)
