"""From a manifest to batches: endless and shuffled to train on, once and in order to evaluate.

A batch is a flat dict: `video` uint8 [b t h w c] RGB, `index` int32 [b] (row of the manifest) and
int32 [b] for each `label_<task>` column.

Shape key: b clips, t frames, h w pixels, c channels.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.clips import BadClip, LoadClip
from invnext_jax.data.mixture import Mixture
from invnext_jax.data.train_dataset import TrainDataset, load_safely
from invnext_jax.data.worker_pool import open_pool
from invnext_jax.data.workers import count_cores

MAX_WORKERS = 16  # of those that are started by themselves


def make_train_dataset(
    data_config,
    *,
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    drops: BadVideoTracker | None = None,
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
        UserError: The manifest is missing, empty or wrong, the weights do not fit it, or the batch
            does not divide by `repeats`; while iterating: no readable video, a bad one where
            `on_bad` is "fail", or a larger share of them than `max_bad_share`.
    """
    manifest = manifest_lib.read_manifest(data_config.manifest)
    return TrainDataset(
        Mixture(manifest, data_config.weights, seed),
        load or LoadClip.from_config(data_config),
        workers=count_workers(data_config.workers),
        prefetch=data_config.prefetch,
        clip_seconds=data_config.clip_seconds,
        seed=seed,
        batch_size=batch_size,
        repeats=data_config.repeats,
        process_index=process_index,
        process_count=process_count,
        drops=BadVideoTracker.from_config(data_config) if drops is None else drops,
    )


def count_workers(wanted: int) -> int:
    """Worker processes to start: `wanted`, or for -1 one a core; each decodes in one thread."""
    cores = count_cores()
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

    def __init__(  # noqa: PLR0913, one caller, by name
        self,
        manifest: manifest_lib.Manifest,
        load: Callable,
        *,
        batch_size: int,
        workers: int,
        prefetch: int,
        clip_seconds: float,
    ):
        self.manifest = manifest
        self.drops = BadVideoTracker()
        self._load, self._batch_size = load, batch_size
        self._workers, self._prefetch, self._seconds = workers, prefetch, clip_seconds

    def __len__(self) -> int:
        """Batches when nothing is dropped."""
        return -(-len(self.manifest) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.drops = BadVideoTracker()
        self.drops.expect(len(self.manifest))
        clips = filter(self._keep, self._clips())
        while rows := list(itertools.islice(clips, self._batch_size)):
            yield _pad(_join(rows), self._batch_size)
        if not self.drops.delivered:
            raise self.drops.nothing_readable()

    def _keep(self, made: dict[str, Any] | BadClip) -> bool:
        if isinstance(made, BadClip):
            self.drops.bad(made)
            return False
        self.drops.good()
        return True

    def _clips(self) -> Iterator[dict[str, Any] | BadClip]:
        pool = open_pool(
            self._work,
            self._load,
            workers=min(self._workers, len(self.manifest)),
            prefetch=self._prefetch,
            seconds=self._seconds,
        )
        try:
            for _ in self.manifest.paths:
                yield pool.take()
        finally:
            pool.close()

    def _work(self, number: int, call: Callable[..., Any]) -> dict[str, Any] | BadClip | None:
        if number >= len(self.manifest):  # the pool looks ahead, past the end
            return None
        made = load_safely(call, self.manifest[number], (None,), self._seconds)
        if isinstance(made, BadClip):
            return made
        # The worker's next clip takes the place of this one.
        return {name: value.copy() for name, value in made.items()}


def make_eval_dataset(
    data_config, *, manifest: str, batch_size: int, load: Callable | None = None
) -> EvalDataset:
    """Batches of fixed size in manifest order: centre frames, centre crop, no flip.

    Args:
        data_config: `config.data`; its own `manifest`, `weights` and `repeats` are not used.
        manifest: What `config.data.manifest` may be.
        batch_size: Clips a batch; the last one is filled up with rows whose `index` is -1.
        load: Stands for `LoadClip`, in tests; worker processes must be able to import it.

    Returns:
        An iterable of batches. Bad videos are dropped, the others move up. The workers start each
        time it is iterated.

    Raises:
        UserError: The manifest is missing, empty or wrong; while iterating: no readable video.
    """
    return EvalDataset(
        manifest_lib.read_manifest(manifest),
        load or LoadClip.from_config(data_config),
        batch_size=batch_size,
        workers=count_workers(data_config.workers),
        prefetch=data_config.prefetch,
        clip_seconds=data_config.clip_seconds,
    )


def _join(clips: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]}


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
