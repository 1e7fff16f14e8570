"""Reads damaged videos in worker processes and checks how each reader ends.

Worker processes import this module, so it must not import jax.

Shape key: r clips of one video, t frames, h w pixels, c channels.
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzzing.container_mutations import mutate
from invnext_jax.data import clips, decode
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.dataset_prep import probing, reencode

FRAMES, SIZE, CLIPS = 4, 32, 2  # frames per clip, side in pixels, clips per video
MAX_CPU_SECONDS = 10.0  # limit for one file and one reader
LOAD = clips.LoadClip(
    frames=FRAMES,
    size=SIZE,
    short_side=SIZE,
    transform=clips.ClipTransform(
        sampling="sparse",
        stride=(1, 2),
        crop="multi_scale",
        crop_scales=(1.0, 0.75),
        crop_area=(0.2, 1.0),
        crop_aspect=(0.75, 1.33),
        jitter=(0.0, 0.0, 0.0, 0.0),
        flip=True,
    ),
    by_source={},
)
REENCODE = reencode.Reencoder(reencode.Encoding(SIZE, crf=30, preset="ultrafast", gop=8))


class Refused(Exception):  # noqa: N818, like BadVideo
    """A reader reported a bad video."""


def _probe(path: str) -> None:
    """Probes a video, like `prepare_data.py index`."""
    try:
        probe = probing.probe_video(path)
    except decode.BadVideo as error:
        raise Refused(str(error)) from error
    if probe.frames < 1 or not 0 <= probe.duration < float("inf"):
        raise AssertionError(f"impossible properties: {probe}")


def _load(path: str) -> None:
    """Loads random clips, like a data worker in training."""
    seed = zlib.crc32(os.path.basename(path).encode())
    loaded = LOAD(_record(path), [(seed, clip) for clip in range(CLIPS)])
    if isinstance(loaded, clips.BadClip):
        raise Refused(loaded.reason)
    _check_clips(loaded["video"], CLIPS)


def _read_center(path: str) -> None:
    """Reads the clip whose features `VideoEncoder` computes."""
    sampler = clips.ClipSampler(clips.ClipTransform(), FRAMES, SIZE, [None])
    try:
        video_rthwc = clips.read_clips(_record(path), sampler, short_side=SIZE)
    except decode.BadVideo as error:
        raise Refused(str(error)) from error
    _check_clips(video_rthwc, 1)


def _reencode(path: str) -> None:
    """Encodes a video again, like `prepare_data.py shards`."""
    result = REENCODE(path, None, None, None)
    if "reason" in result:
        raise Refused(result["reason"])
    if result["frames"] < 1 or not len(result["video"]):
        raise AssertionError(f"an empty video: {result}")


READERS = {"probe": _probe, "training": _load, "features": _read_center, "shards": _reencode}


def _record(path: str) -> VideoRecord:
    return VideoRecord(0, path, "", None, None, {})


def _check_clips(video_rthwc: np.ndarray, count: int) -> None:
    expected = (count, FRAMES, SIZE, SIZE, 3)
    if video_rthwc.shape != expected or video_rthwc.dtype != np.uint8:
        raise AssertionError(f"clips {video_rthwc.shape} {video_rthwc.dtype}, not {expected}")


class AccessWatch:
    """Records the files and sockets that this process opens with Python's functions.

    Files that FFmpeg opens itself are not seen.
    """

    def __init__(self):
        self._thread, self._events = None, []
        sys.addaudithook(self._record)

    def _record(self, event: str, arguments: tuple) -> None:
        if self._thread != threading.get_ident():
            return
        kind = event.partition(".")[0]
        if event == "open" and isinstance(arguments[0], int):
            return  # of a file that is already open
        if event == "open" or kind in ("socket", "subprocess", "ctypes", "urllib"):
            self._events.append(f"{event} {arguments[0]!r:.200}")
        elif event in ("os.system", "os.exec", "os.posix_spawn", "os.listdir", "os.scandir"):
            self._events.append(f"{event} {arguments[0]!r:.200}")

    @contextlib.contextmanager
    def watch(self, allowed: str) -> Iterator[list[str]]:
        """Yields the list of accesses of this thread, except those that open the file `allowed`."""
        self._events, self._thread = [], threading.get_ident()
        try:
            yield self._events
        finally:
            self._thread = None
            self._events[:] = [e for e in self._events if e != f"open {allowed!r:.200}"]


WATCH = AccessWatch()


@dataclasses.dataclass
class CheckFile:
    """Makes a damaged file and reads it with all readers. It is called in worker processes.

    Attributes:
      bases: Paths of the undamaged files.
      folder: Folder for the damaged file.
    """

    bases: tuple[str, ...]
    folder: str

    def __post_init__(self):
        self._data: list[bytes] = []

    def __call__(self, number: int) -> dict[str, Any]:
        """Checks one file.

        Returns:
          A dict with the outcome of each reader ("clip", "refused", or a description of a
          failure), `seconds` of CPU time of the slowest reader, and `peak_bytes`.
        """
        self._prepare()
        path = os.path.join(self.folder, name_file(self.bases, number))
        Path(path).write_bytes(mutate(self._data, number))
        reset_peak_memory()
        found, slowest = {}, 0.0
        for name, read in READERS.items():
            found[name], seconds = check(read, path)
            slowest = max(slowest, seconds)
        os.unlink(path)
        return {**found, "seconds": slowest, "peak_bytes": peak_memory()}

    def _prepare(self) -> None:
        if not self._data:
            self._data = [Path(path).read_bytes() for path in self.bases]
            for read in READERS.values():  # imports what readers import on first use
                read(self.bases[0])


def name_file(bases: tuple[str, ...], number: int) -> str:
    """Returns the name of a damaged file."""
    return f"{number:06}{Path(bases[number % len(bases)]).suffix}"


def check(read: Callable[[str], None], path: str) -> tuple[str, float]:
    """Runs a reader and returns its outcome (see `CheckFile`) and its CPU time in seconds."""
    before, start = _open_files(), time.process_time()
    outcome = "clip"
    with WATCH.watch(path) as accesses:
        try:
            read(path)
        except MemoryError:
            raise  # ends the worker, as in training
        except Exception as caught:
            error = caught
            outcome = "refused" if isinstance(error, Refused) else "unexpected"
    seconds = time.process_time() - start
    if outcome == "unexpected":
        outcome = "".join(traceback.format_exception(error))
    elif outcome == "refused" and len(str(error).replace(path, "").strip(": ")) < 5:
        outcome = f"no reason in words: {error}"
    if accesses:
        outcome = f"accesses: {accesses}"
    elif left := _open_files() - before:
        outcome = f"left open: {sorted(left)}"
    elif seconds > MAX_CPU_SECONDS:
        outcome = f"took {seconds:.0f} s of CPU time"
    return outcome, seconds


def _open_files() -> set[str]:
    """Returns the open files and sockets of this process, as /proc names them."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return {name for name in found if not name.endswith("/fd")}


def reset_peak_memory() -> None:
    """Sets the peak resident memory of this process to its current memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes since `reset_peak_memory`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return peak
