"""What a video file is and whether it can be decoded, found out in processes that may be killed."""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import multiprocessing
import operator
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

import av

from invnext_jax.data import decode

DIGEST_BYTES = 1 << 16  # read at either end of a file, to tell copies
MAX_TAIL = 1000  # frames without a key frame that are decoded to the last
MIN_ZEROS = 16  # bytes; some encoders write less for a frame that is the one before
START_SECONDS = 60  # in which a process must be up
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES, errno.ENOMEM, errno.EMFILE)
ORPHAN_SECONDS = 5  # after the limit, a process whose parent is gone ends


@dataclasses.dataclass(frozen=True)
class Probe:
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
class Failure:
    """Why a file is of no use.

    Attributes:
        reason: A phrase.
        seconds: The limit that it hung beyond, else None.
        passing: Whether it may be the machine's fault, and gone the next time.
    """

    reason: str
    seconds: float | None = None
    passing: bool = False


def probe_video(path: str) -> Probe:
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
    return Probe(frames=counts[0], digest=_digest(path), **facts)


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
            for packet in container.demux(stream)
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
        context = container.streams.video[0].codec_context
        context.thread_type, context.thread_count = "SLICE", 1
        first = next(container.decode(video=0), None)
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
    probe: Callable[[str], Probe] = probe_video,
) -> Iterator[tuple[str, Probe | Failure]]:
    """Probes files in processes; one that hangs or crashes is ended and costs its file alone.

    Args:
        paths: Files.
        workers: Processes.
        seconds: Limit for a file.
        probe: What is done with a file; it must be importable by its name.

    Yields:
        Each path with what was found, in the order in which the files are done.
    """
    waiting = collections.deque(paths)
    crew = [_Worker(probe, seconds) for _ in range(min(workers, len(waiting)))]
    try:
        while waiting or any(worker.path for worker in crew):
            for worker in crew:
                if worker.path is None and waiting:
                    worker.give(waiting.popleft())
            connection.wait([w.pipe for w in crew if w.path], timeout=min(seconds, 1.0))
            for worker in crew:
                if worker.path and (found := worker.collect()):
                    yield found
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """One process and the file that it is busy with; started anew when it is lost."""

    def __init__(self, probe: Callable, seconds: float):
        self._probe, self._seconds = probe, seconds
        self.path: str | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # this process may hold threads
        self.pipe, theirs = context.Pipe()
        arguments = theirs, self._probe, self._seconds
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._busy_since = None  # until it says that it is up
        self._started = time.monotonic()

    def give(self, path: str) -> None:
        self.path = path
        if self._busy_since is not None:
            self._send()

    def _send(self) -> None:
        self._busy_since = time.monotonic()
        with contextlib.suppress(OSError):  # a dead process is seen when its answer is collected
            self.pipe.send(self.path)

    def collect(self) -> tuple[str, Probe | Failure] | None:
        """The answer on the file if there is one, or why there never will be."""
        up, now = self._busy_since is not None, time.monotonic()
        try:
            if self.pipe.poll():
                answer = self.pipe.recv()
                if up:
                    path, self.path = self.path, None
                    return path, answer
                self._send()  # it is up now
                return None
        except (EOFError, OSError):
            self._process.join(1)
            code = self._process.exitcode
            if not up:
                raise RuntimeError(f"a probing process does not start, exit code {code}") from None
            return self._give_up(Failure(f"the decoder crashed (exit code {code})", passing=True))
        if up and now - self._busy_since > self._seconds:
            reason = f"no answer in {self._seconds:g} seconds"
            return self._give_up(Failure(reason, self._seconds))
        if not up and now - self._started > START_SECONDS:
            raise RuntimeError(f"a probing process is not up after {START_SECONDS} seconds")
        return None

    def _give_up(self, failure: Failure) -> tuple[str, Failure]:
        path, self.path = self.path, None
        self.end()
        self._start()
        return path, failure

    def end(self) -> None:
        self._process.kill()
        self._process.join(1)  # one stuck in the file system stays; nothing waits for it
        self.pipe.close()


def _work(pipe: connection.Connection, probe: Callable, seconds: float) -> None:
    """Answers each path with a `Probe` or a `Failure`, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Some decoders hold the interpreter as they hang; then the kernel must end an orphan.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            path = pipe.recv()
            signal.setitimer(signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
            try:
                answer = probe(path)
            except decode.BadVideo as error:
                passing = getattr(error.__cause__, "errno", None) in PASSING
                answer = Failure(str(error).removeprefix(f"{path}: "), passing=passing)
            except (ValueError, ArithmeticError, MemoryError) as error:  # of odd headers
                passing = isinstance(error, MemoryError)
                answer = Failure(f"{type(error).__name__}: {error}", passing=passing)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(answer)


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
