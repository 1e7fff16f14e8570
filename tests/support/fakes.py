"""Fakes of the functions that worker processes run: they hang, die, fail or succeed."""

import ctypes
import dataclasses
import functools
import gc
import importlib
import os
import pathlib
import signal
import sys
import time

import numpy as np
from hostile_workers import Attack

from invnext_jax.data import shards
from invnext_jax.data.clips import BadClip
from invnext_jax.workers.time_limits import reading

ROWS = 20  # number of rows of the manifest in the fixture `list_config`


@dataclasses.dataclass(frozen=True)
class FakeLoad:
    """Fake of `LoadClip`: returns the row and the seeds, or fails in a given way for some rows."""

    hangs: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()
    attacks: tuple[int, ...] = ()  # sends bytes that are not an answer
    raises: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    errors: tuple[int, ...] = ()  # reads fail with an error of the file system
    dies_once: str = ""  # a file that exists after it happened
    stalls: tuple[int, ...] = ()
    gate: str = ""  # reads do not return while this file exists
    slow_reads: tuple[float, ...] = ()  # duration of each read in seconds
    prefetch_log: str = ""  # file to which the prefetched videos are appended

    def prefetch(self, record, file_ahead=""):
        with open(self.prefetch_log, "a") as file:
            file.write(f"{record.name}\n" + (f"ahead {file_ahead}\n" if file_ahead else ""))

    def __call__(self, record, seeds):
        for seconds in self.slow_reads:
            with reading():
                time.sleep(seconds)
        with reading():
            if record.index in self.stalls:
                time.sleep(30)
            while self.gate and pathlib.Path(self.gate).exists():
                time.sleep(0.02)
        if record.index in self.hangs:
            time.sleep(30)
        if record.index in self.attacks:
            Attack("random bytes")()
        if record.index in self.dies:
            os._exit(3)
        if record.index in self.raises:
            raise KeyError("a mistake in the code")
        if record.index in (*self.bad, *self.errors):
            kind = "corrupt" if record.index in self.bad else "unreadable"
            return BadClip(record.path, kind, f"{record.path}: broken")
        if self.dies_once and not pathlib.Path(self.dies_once).exists():
            pathlib.Path(self.dies_once).touch()
            os._exit(3)
        clips = len(seeds)
        video = np.full((clips, 2, 64, 64, 3), record.index % 256, np.uint8)
        seed = np.array([seed or () for seed in seeds])
        return {"video": video, "index": np.full(clips, record.index, np.int32), "seed": seed}


@dataclasses.dataclass(frozen=True)
class OpenCountingLoad:
    """Reads a record of a shard, and returns how many files its process has opened for that."""

    max_open: int  # number of shards that stay open

    def __call__(self, record, seeds):
        open_shard = _open_shards(self.max_open)
        open_shard(record.path).read([record.record])
        numbers = {"process": os.getpid(), "opened": open_shard.cache_info().misses}
        numbers["index"] = record.index
        return {name: np.full(len(seeds), value, np.int32) for name, value in numbers.items()}


@functools.lru_cache
def _open_shards(max_open):
    return functools.lru_cache(max_open)(shards._new_reader)


@dataclasses.dataclass
class FixedSampler:
    """Replaces `clips.ClipSampler` and returns fixed frame numbers and windows.

    Attributes:
      frame_counts: Numbers of frames that it was called with.
      frame_sizes: Heights and widths that it was called with.
    """

    index_rt: np.ndarray
    windows: list
    size: int
    frame_counts: list[int] = dataclasses.field(default_factory=list)
    frame_sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def sample_frames(self, frame_count):
        self.frame_counts.append(frame_count)
        return np.asarray(self.index_rt)

    def sample_windows(self, height, width):
        self.frame_sizes.append((height, width))
        return self.windows


@dataclasses.dataclass(frozen=True)
class FailingSampler:
    """A sampler whose worker hangs or dies."""

    hangs: bool
    size: int = 16
    frames: int = 8

    def sample_frames(self, frame_count):
        del frame_count
        if self.hangs:
            time.sleep(30)
        os._exit(3)


class Unloadable:
    """An object that cannot be unpickled in a worker."""

    def __reduce__(self):
        return os._exit, (1,)


def sleep_and_report(number, seconds):
    """Sleeps, then returns the number and the process ID."""
    time.sleep(seconds)
    return {"number": number, "process": os.getpid()}


def describe_process(module):
    """Imports a module, then returns facts about the process."""
    importlib.import_module(module)
    return {
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "environment": dict(os.environ),
        "ignores_interrupt": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    }


def worker_pids():
    """Returns the IDs of this process's data workers (Linux)."""
    files = pathlib.Path("/proc/self/task").glob("*/children")
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    return [pid for pid in pids if b"workers.worker_main" in _command(pid)]


def _command(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


class _Mallinfo(ctypes.Structure):
    """Statistics of the glibc heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def measure_growth(load, rows, clips):
    """Loads clips, and returns the growth of the allocated memory in bytes per clip."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    for number in range(2 * clips):
        if number == clips:
            gc.collect()
            before = libc.mallinfo2()
        load(rows[number % len(rows)], ((0, number),))
    gc.collect()
    after = libc.mallinfo2()
    return (after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / clips


@dataclasses.dataclass(frozen=True)
class FakeReencoder:
    """Fake of `Reencoder`: hangs or dies on some files and encodes nothing."""

    encoding: object = None

    def __call__(self, path, *place):
        del place
        if path.endswith("hangs.mp4"):
            time.sleep(30)
        if path.endswith("dies.mp4"):
            os._exit(3)
        facts = {"frames": 1, "width": 2, "height": 2, "fps": 1.0, "duration": 1.0}
        return {"video": np.frombuffer(path.encode(), np.uint8), **facts}


def probe_or_hang(path):
    """Fake of `probing.probe_video`: a read of a file with the content "hang" does not return."""
    from invnext_jax.dataset_prep import probing

    if pathlib.Path(path).read_bytes()[:5] == b"hang":
        with reading():
            time.sleep(600)
    return probing.probe_video(path)
