"""Measurements of the loader benchmark: wall time and CPU time of each reader."""

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
from invnext_jax.workers.process_worker import ProcessWorker

EPOCHS = 10_000  # effectively infinite
REST = 0.15  # a process and its children are idle if they use fewer cores than this
WAIT = 0.2  # a batch that takes less than this fraction of its expected time was prefetched
AHEAD = 100  # upper bound on the number of prefetched batches


class Speed(NamedTuple):
    """Result of one measurement.

    Attributes:
      clips: Clips per second.
      cpu: CPU seconds per clip, summed over all processes.
    """

    clips: float
    cpu: float


def measure_bare(name: str, rows: list[readers.Row]) -> Speed:
    """Measures a PyAV loop in one thread of this process."""
    seconds, cpu = readers.time_bare(name, rows)
    return Speed(len(rows) / seconds, cpu / len(rows))


class BareProcesses:
    """Runs a PyAV loop in `count` processes at once, to measure the machine's maximum speed."""

    def __init__(self, name: str, rows: list[readers.Row], count: int):
        self._task, self._count = (name, rows), count
        self._crew = [ProcessWorker(readers.time_bare) for _ in range(count)]
        for worker in self._crew:
            worker.call((name, rows[:1]), 600)

    def measure(self) -> Speed:
        """Measures all processes; each reads all rows."""
        with ThreadPool(self._count) as threads:
            found = threads.map(lambda worker: worker.call(self._task, 3600), self._crew)
        rows = len(self._task[1])
        clips = sum(rows / seconds for seconds, _ in found)
        return Speed(clips, sum(cpu for _, cpu in found) / (rows * self._count))

    def close(self) -> None:
        """Stops the processes."""
        for worker in self._crew:
            worker.close()


class Batches:
    """A reader that prefetches a limited number of batches in its own processes.

    Args:
      iterator: Iterator over the batches.
      batch: Clips per batch.
      close: Function that stops the processes.
    """

    def __init__(self, iterator: Iterator, batch: int, close: Callable[[], None]):
        self._iterator, self._batch, self.close = iterator, batch, close
        for _ in range(2):  # ensures that all processes have started
            next(iterator)
        _wait_for_rest()

    def measure(self, clips: int, pace: float) -> Speed:
        """Measures the speed after all prefetched batches have been read.

        Args:
          clips: Number of clips to measure.
          pace: Approximate clips per second, to recognize prefetched batches.
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
    """Opens this package's pipeline."""
    iterator = iter(make_dataset(manifest, sampling, workers, batch))
    return Batches(iterator, batch, iterator.close)


def open_grain(manifest: Path, sampling: str, workers: int, batch: int) -> Batches:
    """Opens Grain's `mp_prefetch` with this package's order and loading function."""
    dataset = make_dataset(manifest, sampling, workers, batch)
    iterator = readers.open_grain(dataset.mixture.order, dataset._load, workers, batch)
    return Batches(iterator, batch, iterator.close)


def make_dataset(manifest: Path, sampling: str, workers: int, batch: int):
    """Makes the training dataset of this package over the rows of a manifest."""
    config = common.data()
    config.update(manifest=str(manifest), workers=workers, sampling=sampling)
    config.update(frames=readers.FRAMES, stride=(readers.STRIDE, readers.STRIDE))
    config.update(size=readers.SIZE, short_side=readers.SHORT)
    config.weights = tuple(
        (name, 1.0) for name in set(manifest_lib.read_manifest(manifest).sources)
    )
    load = readers.CenterClip(LoadClip.from_config(config))
    return pipeline.make_train_dataset(config, seed=0, batch_size=batch, load=load)


def open_dataloader(peer: str, rows: list[readers.Row], workers: int, batch: int) -> Batches:
    """Opens PyTorch's DataLoader with decoding by the library `peer`."""
    from torch.utils.data import DataLoader

    dataset = readers.PeerDataset(peer, rows * EPOCHS)
    iterator = iter(DataLoader(dataset, batch, num_workers=workers))

    def close() -> None:
        with contextlib.suppress(RuntimeError):  # decord's processes may crash when they exit
            iterator._shutdown_workers()

    return Batches(iterator, batch, close)


def _wait_for_rest() -> None:
    """Waits until all processes are idle, so that they do not slow down the next reader."""
    busy = 1.0
    while busy > REST:
        before = _cpu_seconds()
        time.sleep(0.2)
        busy = (_cpu_seconds() - before) / 0.2


def _cpu_seconds() -> float:
    """Returns the CPU seconds of this process and its running descendants (Linux only)."""
    ticks, waiting = 0, [os.getpid()]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
            for task in (folder / "task").iterdir():
                waiting += (task / "children").read_text().split()
        except OSError:  # the process has ended, or the system is not Linux
            continue
    return ticks / os.sysconf("SC_CLK_TCK")
