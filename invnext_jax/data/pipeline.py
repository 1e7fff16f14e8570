"""From a manifest to batches: endless and shuffled to train on, once and in order to evaluate.

A batch is a flat dict: `video` uint8 [b t h w c] RGB, `index` int32 [b] (row of the manifest) and
int32 [b] for each `label_<task>` column.

Shape key: b clips, t frames, h w pixels, c channels.
"""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from invnext_jax.data import sources
from invnext_jax.data.clips import BadClip, LoadClip
from invnext_jax.data.drops import DropCounter
from invnext_jax.data.stream import IN_PROCESS_THREADS, TrainDataset, stack

MAX_WORKERS = 16  # of those that are started by themselves


def make_train_dataset(
    data_config,
    *,
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    drops: DropCounter | None = None,
    load: Callable | None = None,
) -> TrainDataset:
    """Endless shuffled batches; the state of its iterator is a number and resumes exactly.

    Args:
        data_config: `config.data`.
        seed: Order and augmentation follow from it; not negative.
        batch_size: Clips a batch of this process.
        process_index: Number of this process; it takes that block of each global batch.
        process_count: Processes that share the data.
        drops: Counts what is dropped, for the caller to read.
        load: Stands for `LoadClip`, in tests; it must stand in a module, not in the main script.

    Returns:
        A dataset of batches. Close its iterator when done.

    Raises:
        UserError: The manifest is missing, empty or wrong; while iterating: no readable video, a
            bad one where `on_bad` is "fail", or a larger share of them than `max_bad_share`.
    """
    return TrainDataset(
        sources.read_manifest(data_config.manifest),
        load or LoadClip.from_config(data_config),
        workers=count_workers(data_config.workers),
        prefetch=data_config.prefetch,
        clip_seconds=data_config.clip_seconds,
        seed=seed,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        drops=DropCounter.from_config(data_config) if drops is None else drops,
    )


def count_workers(wanted: int) -> int:
    """Worker processes to start: `wanted`, or for -1 one a core; each decodes in one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if wanted < 0:
        return min(cores, MAX_WORKERS)
    if wanted > cores:
        logging.warning("config.data.workers=%d is more than the %d cores", wanted, cores)
    return wanted


class EvalDataset:
    """Batches in the order of a manifest, once each time it is iterated.

    Attributes:
        manifest: The rows.
        drops: What was dropped so far.
    """

    def __init__(self, load: Callable, manifest: sources.Manifest, batch_size: int, threads: int):
        self.manifest = manifest
        self.drops = DropCounter()
        self._load, self._batch_size, self._threads = load, batch_size, threads

    def __len__(self) -> int:
        """Batches when nothing is dropped."""
        return -(-len(self.manifest) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.drops = DropCounter()
        self.drops.expect(len(self.manifest))
        clips = filter(self._keep, self._clips())
        while rows := list(itertools.islice(clips, self._batch_size)):
            yield _pad(stack(rows), self._batch_size)
        if not self.drops.delivered:
            raise self.drops.nothing_readable()

    def _keep(self, made: dict[str, Any] | BadClip) -> bool:
        if isinstance(made, BadClip):
            self.drops.bad(made)
            return False
        self.drops.good()
        return True

    def _clips(self) -> Iterator[dict[str, Any] | BadClip]:
        """Decodes in threads (the decoder lets go of the interpreter), a bounded way ahead."""
        waiting = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            try:
                for record in self.manifest:
                    waiting.append(pool.submit(self._load, record, None))
                    if len(waiting) > 4 * self._threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def make_eval_dataset(data_config, *, manifest: str, batch_size: int) -> EvalDataset:
    """Batches of fixed size in manifest order: centre frames, centre crop, no flip.

    Args:
        data_config: `config.data`; its own `manifest` is not used.
        manifest: Path of the CSV file.
        batch_size: Clips a batch; the last one is filled up with rows whose `index` is -1.

    Returns:
        An iterable of batches. Bad videos are dropped, the others move up.

    Raises:
        UserError: The manifest is missing, empty or wrong; while iterating: no readable video.
    """
    wanted = count_workers(data_config.workers) or IN_PROCESS_THREADS
    threads = max(1, min(wanted, os.cpu_count() or 1))
    load = LoadClip.from_config(data_config)
    return EvalDataset(load, sources.read_manifest(manifest), batch_size, threads)


def _pad(batch: dict[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    missing = batch_size - len(batch["index"])
    if not missing:
        return batch
    padded = {
        name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
        for name, value in batch.items()
    }
    padded["index"][-missing:] = -1
    return padded
