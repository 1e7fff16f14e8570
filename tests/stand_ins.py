"""Stand-ins for what worker processes call: they hang, die, fail or succeed."""

import ctypes
import dataclasses
import gc
import importlib
import os
import pathlib
import signal
import sys
import time

import numpy as np

from invnext_jax.data.clips import BadClip


@dataclasses.dataclass(frozen=True)
class Load:
    """Gives the row and the seeds; does otherwise for some rows."""

    hangs: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    dies_once: str = ""  # a file that tells that it has happened

    def __call__(self, record, seeds):
        if record.index in self.hangs:
            time.sleep(30)
        if record.index in self.dies:
            os._exit(3)
        if record.index in self.raises:
            raise KeyError("a mistake in the code")
        if record.index in self.bad:
            return BadClip(record.path, "corrupt", f"{record.path}: broken")
        if self.dies_once and not pathlib.Path(self.dies_once).exists():
            pathlib.Path(self.dies_once).touch()
            os._exit(3)
        clips = len(seeds)
        video = np.full((clips, 2, 64, 64, 3), record.index, np.uint8)
        seed = np.array([seed or () for seed in seeds])
        return {"video": video, "index": np.full(clips, record.index, np.int32), "seed": seed}


class Unloadable:
    """Cannot be unpickled in a worker."""

    def __reduce__(self):
        return os._exit, (1,)


def wait_and_tell(number, seconds):
    """Sleeps, then gives the number and the process's."""
    time.sleep(seconds)
    return {"number": number, "process": os.getpid()}


def tell_about_process(module):
    """Imports a module, then tells what the process holds."""
    importlib.import_module(module)
    return {
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "environment": dict(os.environ),
        "ignores_interrupt": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    }


def children():
    """Process numbers of this process's data workers (Linux)."""
    files = pathlib.Path("/proc/self/task").glob("*/children")
    found = [int(number) for file in files for number in file.read_text().split()]
    return [number for number in found if b"data.serve" in _command(number)]


def _command(number):
    try:
        return pathlib.Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:  # it is gone
        return b""


class _Mallinfo(ctypes.Structure):
    """What glibc tells of its heap."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def tell_growth(load, rows, clips):
    """Loads clips, and tells by how many bytes a clip the memory in use has grown."""
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
class Encode:
    """Stands for `Reencode`: hangs or dies over some files, encodes nothing."""

    encoding: object = None

    def __call__(self, path, *place):
        del place
        if path.endswith("hangs.mp4"):
            time.sleep(30)
        if path.endswith("dies.mp4"):
            os._exit(3)
        facts = {"frames": 1, "width": 2, "height": 2, "fps": 1.0, "duration": 1.0}
        return {"video": np.frombuffer(path.encode(), np.uint8), **facts}
