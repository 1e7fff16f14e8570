"""Stand-ins for what worker processes call: they hang, die, fail or succeed."""

import dataclasses
import os
import pathlib
import time

import numpy as np

from invnext_jax.data.clips import BadClip


@dataclasses.dataclass(frozen=True)
class Load:
    """Gives the row and the seed; does otherwise for some rows."""

    hangs: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    dies_once: str = ""  # a file that tells that it has happened

    def __call__(self, record, seed):
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
        video = np.full((2, 64, 64, 3), record.index, np.uint8)
        return {"video": video, "index": np.int32(record.index), "seed": np.array(seed)}


class Unloadable:
    """Cannot be unpickled in a worker."""

    def __reduce__(self):
        return os._exit, (1,)


def wait_and_tell(number, seconds):
    """Sleeps, then gives the number and the process's."""
    time.sleep(seconds)
    return {"number": number, "process": os.getpid()}


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
