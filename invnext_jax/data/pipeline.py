"""From a manifest to batches: source, shuffle, decode and augment, shard, prefetch, batch.

Which clip comes n-th, and how it is cut, is a pure function of seed and n: the same for any
number of workers and processes. A video that cannot be decoded is dropped, counted and named once.

A batch is a flat dict: `video` uint8 [b t h w c] RGB, `index` int32 [b] (row of the manifest) and
int32 [b] for each `label_<task>` column.

Shape key: b clips, t frames, h w pixels, c channels.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import logging

from invnext_jax.data import decode, sampling, sources, transforms
from invnext_jax.errors import UserError

MIN_FAILURES = 100  # so many bad videos, and no good one, end a run
SIGNAL_GRACE_SECONDS = 60
IN_PROCESS_THREADS = 4


class DropCounter:
    """Lets decoded clips through; counts the videos that failed and names each once in the log.

    Attributes:
        delivered: Clips let through.
        dropped: Clips dropped, a video that fails in two epochs counting twice.
        names: Reasons by path.
    """

    def __init__(self):
        self.delivered = 0
        self.dropped = 0
        self.names: dict[str, str] = {}
        self._limit = MIN_FAILURES

    def expect(self, videos: int) -> None:
        """Tells how many videos there are, which sets when to give up."""
        self._limit = max(MIN_FAILURES, videos)

    def __call__(self, element: dict[str, Any]) -> bool:
        """Tells whether `element` is a clip.

        Raises:
            UserError: Every one of the first videos failed.
        """
        if "bad_path" not in element:
            self.delivered += 1
            return True
        self.dropped += 1
        path, reason = element["bad_path"], element["reason"]
        if path not in self.names:
            self.names[path] = reason
            logging.warning("video dropped: %s", reason)
        if not self.delivered and self.dropped >= self._limit:
            raise self.nothing_readable()
        return False

    def nothing_readable(self) -> UserError:
        """The error for a data set without a single good video."""
        reason = next(iter(self.names.values()))
        return UserError(f"no readable video among the first {self.dropped}, e.g. {reason}")


@dataclasses.dataclass(frozen=True)
class LoadClip:
    """Decodes a video and cuts a clip from it; what fails becomes a note of the path and reason."""

    frames: int
    sampling: str
    stride: tuple[int, int]
    size: int
    short_side: int
    crop: str
    crop_scales: tuple[float, ...]
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    jitter: tuple[float, ...]
    flip: bool
    no_flip_sources: tuple[str, ...]

    @classmethod
    def from_config(cls, data_config) -> "LoadClip":
        """Takes the fields of the same names from `config.data`."""
        values = {f.name: getattr(data_config, f.name) for f in dataclasses.fields(cls)}
        lists = {name: tuple(v) for name, v in values.items() if isinstance(v, (list, tuple))}
        return cls(**values | lists)

    def __call__(
        self, record: sources.VideoRecord, rng: np.random.Generator | None
    ) -> dict[str, Any]:
        """Makes one element of a batch; `rng` None stands for the centre of everything."""
        try:
            video_thwc = decode.read_frames(
                record.path,
                lambda count: self._sample(count, rng),
                short_side=self.short_side,
                start=record.start,
                end=record.end,
            )
        except decode.BadVideo as error:
            return {"bad_path": record.path, "reason": str(error)}
        if rng is None:
            video_thwc = transforms.resize_center(video_thwc, self.size)
        else:
            video_thwc = self._augment(video_thwc, record.source, rng)
        labels = {name: np.int32(value) for name, value in record.labels.items()}
        video_thwc = np.ascontiguousarray(video_thwc)
        return {"video": video_thwc, "index": np.int32(record.index), **labels}

    def _sample(self, count: int, rng: np.random.Generator | None) -> np.ndarray:
        if self.sampling == "dense":
            return sampling.sample_dense(count, self.frames, self.stride, rng)
        return sampling.sample_sparse(count, self.frames, rng)

    def _augment(self, video_thwc, source: str, rng: np.random.Generator) -> np.ndarray:
        if self.crop == "random_resized":
            window = (self.size, self.crop_area, self.crop_aspect)
            video_thwc = transforms.random_resized_crop(video_thwc, *window, rng)
        else:
            video_thwc = transforms.multi_scale_crop(video_thwc, self.size, self.crop_scales, rng)
        if self.flip and source not in self.no_flip_sources and rng.random() < 0.5:
            video_thwc = transforms.flip(video_thwc)
        if any(self.jitter):
            video_thwc = transforms.jitter_colors(video_thwc, self.jitter, rng)
        return video_thwc


def make_train_dataset(
    data_config,
    *,
    seed: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    drops: DropCounter | None = None,
) -> grain.IterDataset:
    """Endless shuffled batches; the state of its iterator is small and resumes exactly.

    Args:
        data_config: `config.data`.
        seed: Order and augmentation follow from it.
        batch_size: Clips a batch of this process.
        process_index: Number of this process; it takes every `process_count`-th clip.
        process_count: Processes that share the data.
        drops: Counts what is dropped, for the caller to read.

    Returns:
        A dataset of batches. Close its iterator when done. The workers need a main module that
        may be imported, and parsed absl flags.

    Raises:
        UserError: The manifest is missing, empty or wrong; while iterating: no readable video.
    """
    manifest = sources.read_manifest(data_config.manifest)
    drops = DropCounter() if drops is None else drops
    drops.expect(len(manifest))
    dataset = grain.MapDataset.source(sources.VideoFileSource(manifest)).seed(seed)
    # The random numbers of a clip come from its place in the whole order, hence before the shard.
    dataset = dataset.shuffle().repeat().random_map(LoadClip.from_config(data_config))
    dataset = dataset[process_index::process_count]
    workers = data_config.workers
    threads = 0 if workers else IN_PROCESS_THREADS  # a worker holds clips in its queue alone
    buffer = max(threads, data_config.prefetch) if threads else 0
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    dataset = dataset.to_iter_dataset(read)
    if workers:
        options = grain.MultiprocessingOptions(workers, data_config.prefetch)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_init_worker)
    # Dropping and batching in the parent keep the order independent of the number of workers.
    return dataset.filter(drops).batch(batch_size, drop_remainder=True, batch_fn=_stack)


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
        clips = filter(self.drops, self._clips())
        while rows := list(itertools.islice(clips, self._batch_size)):
            yield _pad(_stack(rows), self._batch_size)
        if not self.drops.delivered:
            raise self.drops.nothing_readable()

    def _clips(self) -> Iterator[dict[str, Any]]:
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
    threads = max(1, min(data_config.workers or IN_PROCESS_THREADS, os.cpu_count() or 1))
    load = LoadClip.from_config(data_config)
    return EvalDataset(load, sources.read_manifest(manifest), batch_size, threads)


def _stack(rows) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


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


def _init_worker(worker_index: int, worker_count: int) -> None:
    """Keeps a worker off the accelerator, alive through a shutdown, and never longer than that."""
    del worker_index, worker_count
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # A signal to the whole group must not take the data away before the parent has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_later(signal_number, frame) -> None:
    del signal_number, frame
    timer = threading.Timer(SIGNAL_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
