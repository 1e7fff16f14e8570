"""One turn of each reader of the loader's benchmark, by the clock and in processor time."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import loader_readers as readers

from configs import common
from invnext_jax.data import pipeline
from invnext_jax.data.clips import LoadClip
from invnext_jax.data.workers import ProcessWorker

WARM = 2  # batches before the clock starts: by then the readers wait for nobody


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


def measure_bare_processes(name: str, rows: list[readers.Row], count: int) -> Speed:
    """As many bare loops at once as there are cores: what the machine can give."""
    crew, found = [ProcessWorker(readers.time_bare) for _ in range(count)], []
    for worker in crew:
        worker.call((name, rows[:1]), 600)
    threads = [
        threading.Thread(target=lambda w=w: found.append(w.call((name, rows), 3600))) for w in crew
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in crew:
        worker.end()
    clips = sum(len(rows) / seconds for seconds, _ in found)
    return Speed(clips, sum(cpu for _, cpu in found) / (len(rows) * count))


def measure_pipeline(manifest: Path, sampling: str, workers: int, clips: int, batch: int) -> Speed:
    """Batches of our pipeline, once its workers are busy."""
    iterator = iter(make_dataset(manifest, sampling, workers, batch))
    try:
        return _time_batches(iterator, clips, batch)
    finally:
        iterator.close()


def make_dataset(manifest: Path, sampling: str, workers: int, batch: int):
    """Our pipeline over the rows of a manifest."""
    config = common.data()
    config.update(manifest=str(manifest), workers=workers, sampling=sampling)
    config.update(frames=readers.FRAMES, stride=(readers.STRIDE, readers.STRIDE))
    config.update(size=readers.SIZE, short_side=readers.SHORT)
    load = readers.CentreClip(LoadClip.from_config(config))
    return pipeline.make_train_dataset(config, seed=0, batch_size=batch, load=load)


def measure_dataloader(
    peer: str, rows: list[readers.Row], workers: int, clips: int, batch: int
) -> Speed:
    """Batches of PyTorch's DataLoader."""
    from torch.utils.data import DataLoader

    epochs = 2 + batch * (WARM + 2 * workers + 1) // len(rows) + clips // len(rows)
    dataset = readers.PeerDataset(peer, rows * epochs)
    iterator = iter(DataLoader(dataset, batch, num_workers=workers))
    try:
        return _time_batches(iterator, clips, batch)
    finally:
        with contextlib.suppress(RuntimeError):  # decord's processes may crash as they end
            iterator._shutdown_workers()


def _time_batches(iterator, clips: int, batch: int) -> Speed:
    for _ in range(WARM):
        next(iterator)
    start, start_cpu = time.perf_counter(), _cpu_seconds()
    for _ in range(clips // batch):
        next(iterator)
    seconds = time.perf_counter() - start
    return Speed(clips / seconds, (_cpu_seconds() - start_cpu) / clips)


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
