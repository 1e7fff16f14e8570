"""One turn of each reader of the loader's benchmark, by the clock and in processor time."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import loader_readers as readers

from configs import common
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline
from invnext_jax.data.clips import LoadClip
from invnext_jax.data.workers import ProcessWorker

EPOCHS = 10_000  # more than anybody has the patience for
REST = 0.15  # cores in use by a process and its children that wait
WAIT = 0.2  # least part of its time that a batch takes which is not made yet
AHEAD = 100  # no reader makes so many batches ahead


class Speed(NamedTuple):
    """What a turn gave.

    Attributes:
        clips: A second.
        cpu: Seconds of processor time a clip, of all processes.
    """

    clips: float
    cpu: float


def measure_bare(name: str, rows: list[readers.Row]) -> Speed:
    """One thread of this process."""
    seconds, cpu = readers.time_bare(name, rows)
    return Speed(len(rows) / seconds, cpu / len(rows))


class BareProcesses:
    """As many bare loops at once as there are cores: what the machine can give."""

    def __init__(self, name: str, rows: list[readers.Row], count: int):
        self._task, self._count = (name, rows), count
        self._crew = [ProcessWorker(readers.time_bare) for _ in range(count)]
        for worker in self._crew:
            worker.call((name, rows[:1]), 600)

    def measure(self) -> Speed:
        """Each loop reads all rows."""
        with ThreadPool(self._count) as threads:
            found = threads.map(lambda worker: worker.call(self._task, 3600), self._crew)
        rows = len(self._task[1])
        clips = sum(rows / seconds for seconds, _ in found)
        return Speed(clips, sum(cpu for _, cpu in found) / (rows * self._count))

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._crew:
            worker.close()


class Batches:
    """A reader that makes batches ahead, in processes of its own, until its room is full.

    Args:
        iterator: Gives them.
        batch: Clips of one.
        close: Ends the processes.
    """

    def __init__(self, iterator: Iterator, batch: int, close: Callable[[], None]):
        self._iterator, self._batch, self.close = iterator, batch, close
        for _ in range(2):  # all processes are up
            next(iterator)
        _wait_for_rest()

    def measure(self, clips: int, pace: float) -> Speed:
        """The pace of so many clips, once those made ahead are used up.

        Args:
            clips: As many.
            pace: How many a second there may be, about: it tells which batches were made ahead.
        """
        for _ in range(AHEAD):
            start = time.perf_counter()
            next(self._iterator)
            if time.perf_counter() - start > WAIT * self._batch / pace:
                break
        start, start_cpu = time.perf_counter(), _cpu_seconds()
        for _ in range(clips // self._batch):
            next(self._iterator)
        seconds = time.perf_counter() - start
        speed = Speed(clips / seconds, (_cpu_seconds() - start_cpu) / clips)
        _wait_for_rest()
        return speed


def open_pipeline(manifest: Path, sampling: str, workers: int, batch: int) -> Batches:
    """Our pipeline."""
    iterator = iter(make_dataset(manifest, sampling, workers, batch))
    return Batches(iterator, batch, iterator.close)


def make_dataset(manifest: Path, sampling: str, workers: int, batch: int):
    """Our pipeline over the rows of a manifest."""
    config = common.data()
    config.update(manifest=str(manifest), workers=workers, sampling=sampling)
    config.update(frames=readers.FRAMES, stride=(readers.STRIDE, readers.STRIDE))
    config.update(size=readers.SIZE, short_side=readers.SHORT)
    config.weights = tuple(
        (name, 1.0) for name in set(manifest_lib.read_manifest(manifest).sources)
    )
    load = readers.CentreClip(LoadClip.from_config(config))
    return pipeline.make_train_dataset(config, seed=0, batch_size=batch, load=load)


def open_dataloader(peer: str, rows: list[readers.Row], workers: int, batch: int) -> Batches:
    """PyTorch's DataLoader."""
    from torch.utils.data import DataLoader

    dataset = readers.PeerDataset(peer, rows * EPOCHS)
    iterator = iter(DataLoader(dataset, batch, num_workers=workers))

    def close() -> None:
        with contextlib.suppress(RuntimeError):  # decord's processes may crash as they end
            iterator._shutdown_workers()

    return Batches(iterator, batch, close)


def _wait_for_rest() -> None:
    """Until all processes made what they make ahead, or the next reader had them beside it."""
    busy = 1.0
    while busy > REST:
        before = _cpu_seconds()
        time.sleep(0.2)
        busy = (_cpu_seconds() - before) / 0.2


def _cpu_seconds() -> float:
    """Processor time of this process and of those that it started and that live (Linux)."""
    ticks, waiting = 0, [os.getpid()]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
            for task in (folder / "task").iterdir():
                waiting += (task / "children").read_text().split()
        except OSError:  # it ended, or this is no Linux
            continue
    return ticks / os.sysconf("SC_CLK_TCK")
