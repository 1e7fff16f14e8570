"""Infinite, resumable stream of training batches, in which substitutes replace bad videos.

Batch n of a run contains the global clips n * B to (n + 1) * B - 1, and each process loads those at
its positions. The video of a global clip and its augmentation depend only on the seed and the
clip's number, not on the number of workers or processes. If a video is bad, the choice of its
substitute depends on the same two numbers. Each group of `repeats` consecutive clips comes from one
video, which is decoded once. A group is the unit of work. See docs/data.md.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import fingerprints
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.batch_buffer import BatchBuffer
from invnext_jax.data.clips import BadClip
from invnext_jax.data.mixture import Mixture
from invnext_jax.data.storage_retries import StorageMonitor, load_in_worker, protocols_of
from invnext_jax.errors import UserError
from invnext_jax.workers.process_worker import count_cores
from invnext_jax.workers.worker_pool import (
    IN_PROCESS_THREADS,
    OrderedPool,
    SupervisedWorker,
    open_pool,
)

MAX_TRIES = 100  # maximum number of videos tried for one position in a batch
WORKER_FAILURES = ("time limit", "worker died")  # reasons that may have taken the full timeout
MAX_WORKER_FAILURES = 5  # maximum number of tries in which the worker hangs or dies
CLIP_STREAM = 0  # random stream; see also `mixture.SUBSTITUTE_STREAM`


class GroupResult(NamedTuple):
    """Result of loading a group of clips.

    Attributes:
        batch: The batch to which the clips were written, or None if all tried videos are bad.
        bad_clips: The bad videos among those tried.
    """

    batch: dict[str, np.ndarray] | None
    bad_clips: list[BadClip]


class TrainDataset:
    """Infinite shuffled batches; see `pipeline.make_train_dataset`.

    Attributes:
        batch_size: Number of clips per batch on this process.
        global_batch: Number of clips per batch on all processes.
        mixture: Order of the videos.
        workers: Number of worker processes; 0 means threads of this process.
        storage: Counter of failed reads.
        bad_videos: Tracker of good and bad clips.
        repeats: Number of consecutive clips from one video.
    """

    def __init__(  # noqa: PLR0913, one caller, all by name
        self,
        mixture: Mixture,
        load: Callable,
        *,
        workers: int,
        prefetch: int,
        clip_seconds: float,
        seed: int,
        batch_size: int,
        positions: Sequence[int],
        repeats: int,
        bad_videos: BadVideoTracker,
    ):
        self.batch_size, self.global_batch = len(positions), batch_size
        if self.batch_size % repeats:
            raise UserError(
                f"the {self.batch_size} clips of a batch that each process loads must be divisible "
                f"by config.data.repeats={repeats}: change either number"
            )
        self._group_starts = list(positions[::repeats])
        groups = [start + i for start in self._group_starts for i in range(repeats)]
        if groups != list(positions) or any(start % repeats for start in self._group_starts):
            raise UserError(
                f"the config.data.repeats={repeats} clips of one video would be on several "
                "processes: set it to a divisor of the number of clips per device, or change "
                "config.batch_size"
            )
        self.mixture, self.bad_videos, self.repeats = mixture, bad_videos, repeats
        self.storage = StorageMonitor()
        self._seed, self._load = seed, load
        self.workers, self._prefetch, self._timeout = workers, prefetch, clip_seconds

    def __iter__(self) -> "TrainIterator":
        return TrainIterator(self)

    @property
    def videos(self) -> int:
        """Number of rows of all manifests."""
        return len(self.mixture.manifest)

    @property
    def groups(self) -> int:
        """Number of groups of clips in a batch of this process."""
        return self.batch_size // self.repeats

    def describe(self, steps: int) -> str:
        """Formats a table of the sources with their number of epochs in a run of `steps` steps."""
        return self.mixture.table(steps * self.global_batch)

    def sample_digests(self) -> list[dict[str, Any]]:
        """Returns the digests of some of the videos; see `fingerprints.sample_digests`."""
        return fingerprints.sample_digests(self.mixture.manifest, self._timeout)

    def open_pool(self, first_batch: int, buffer: BatchBuffer) -> OrderedPool:
        """Starts workers that write this process's clips, from `first_batch` on, to `buffer`."""
        return open_pool(
            lambda task, worker: self._load_group(first_batch * self.groups + task, worker, buffer),
            self._load,
            workers=self.workers,
            prefetch=-(-self._prefetch // self.repeats),
            timeout=self._timeout,
            protocols=protocols_of(self.mixture.manifest),
        )

    def _first_clip_of(self, number: int) -> int:
        """Returns the global number of the first clip in this process's group `number`."""
        batch, position = divmod(number, self.groups)
        return batch * self.global_batch + self._group_starts[position]

    def _read_ahead(self, number: int, worker: SupervisedWorker) -> None:
        """Lets a worker read a later video of a shard into the page cache while it decodes."""
        record = self.mixture.get_video(self._first_clip_of(number) // self.repeats)
        if record.record is not None:
            worker.prefetch(record)

    def _load_group(
        self, number: int, worker: SupervisedWorker, buffer: BatchBuffer
    ) -> GroupResult:
        """Loads this process's group `number`; tries substitutes if a video is bad."""
        batch, position = divmod(number, self.groups)
        first = self._first_clip_of(number)
        if self.workers:
            self._read_ahead(number + self.workers, worker)
        bad_clips, worker_failures = [], 0
        for attempt in range(MAX_TRIES):
            row = self.mixture.get_video(first // self.repeats, attempt).index
            numbers = range(first, first + self.repeats)
            seeds = tuple((self._seed, clip, attempt, CLIP_STREAM) for clip in numbers)
            clips = load_in_worker(
                worker, self.mixture.manifest, row, seeds, self._timeout, self.storage
            )
            if not isinstance(clips, BadClip):
                written = buffer.write(batch, position * self.repeats, clips)
                return GroupResult(written, bad_clips)
            bad_clips.append(clips)
            worker_failures += clips.kind in WORKER_FAILURES
            if self.bad_videos.fail_on_bad or worker_failures == MAX_WORKER_FAILURES:
                break
        return GroupResult(None, bad_clips)


class TrainIterator:
    """Iterator over a `TrainDataset`; close it after use."""

    def __init__(self, dataset: TrainDataset):
        self._dataset, self._batches_done = dataset, 0
        self._buffer = BatchBuffer(dataset.batch_size)
        self._pool = None

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._pool is None:
            self._pool = self._dataset.open_pool(self._batches_done, self._buffer)
        for _ in range(self._dataset.groups):
            batch = self._next_group()
        self._batches_done += 1
        return batch

    def _next_group(self) -> dict[str, np.ndarray]:
        batch, bad_clips = self._pool.next_result()
        bad_videos, repeats = self._dataset.bad_videos, self._dataset.repeats
        for bad_clip in bad_clips:
            bad_videos.count_bad(bad_clip, repeats)
        if batch is None:
            raise bad_videos.too_many_tries_error(len(bad_clips))
        bad_videos.count_good(repeats)
        return batch

    @property
    def dropped(self) -> int:
        """Number of clips dropped so far on this process because their video is bad."""
        return self._dataset.bad_videos.dropped

    @property
    def failed_reads(self) -> int:
        """Number of reads of this process that did not return in time or failed."""
        return self._dataset.storage.failed_reads

    def counts(self) -> dict[str, int]:
        """Returns this process's counts for the log."""
        return {"dropped_videos": self.dropped, "failed_reads": self.failed_reads}

    @property
    def decoded(self) -> tuple[int, float]:
        """Number of clips decoded so far on this process, and seconds that its workers were busy.

        See `OrderedPool.work_done`.
        """
        if self._pool is None:
            return 0, 0.0
        groups, seconds = self._pool.work_done
        return groups * self._dataset.repeats, seconds

    def get_state(self) -> dict[str, int]:
        """Returns the position: the total number of clips delivered to all processes."""
        return {"clips": self._batches_done * self._dataset.global_batch}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a position. The number of workers and processes may have changed since.

        Raises:
            UserError: The state was saved by another version or with another batch size.
        """
        clips = state.get("clips") if isinstance(state, Mapping) else None
        if not isinstance(clips, int):
            raise UserError(
                "the position in the data was saved by another version of the input pipeline; "
                "choose another --workdir, and start from this run with config.init_from"
            )
        batches, rest = divmod(clips, self._dataset.global_batch)
        if rest:
            raise UserError(
                f"the position in the data, {clips} clips, is not a multiple of the batch size "
                f"{self._dataset.global_batch}: continue with the batch size of the checkpoint"
            )
        self.close()
        self._batches_done, self._buffer = batches, BatchBuffer(self._dataset.batch_size)

    def describe_wait(self) -> str:
        """Returns why the data is slow, and what to change; "" before the first clip."""
        busy, reading = self._pool.busy_seconds() if self._pool else (0.0, 0.0)
        if not busy:
            return ""
        share, workers, cores = reading / busy, self._dataset.workers, count_cores()
        text = f"the {workers or IN_PROCESS_THREADS} data workers waited for storage {share:.0%} "
        text += "of their time and decoded for the rest. "
        if share > 0.5:
            return text + (
                "Storage is the limit: copy the videos to a local disk, make them smaller with "
                f"prepare_data.py shards, or start more workers (config.data.workers={workers})"
            )
        more = f"more workers (config.data.workers={workers}; this machine has {cores} cores)"
        return text + (
            "Decoding is the limit: "
            + (f"start {more}, or " if workers < cores else "use a machine with more cores, or ")
            + "re-encode the videos with prepare_data.py shards, which decode several times faster"
        )

    def summary(self) -> str:
        """Returns a summary of clips and workers for the log; "" before the first batch."""
        if self._pool is None:
            return ""
        bad_videos, memory = self._dataset.bad_videos, self._pool.peak_memory()
        text = f"data: {bad_videos.delivered} clips, {bad_videos.dropped} dropped"
        if bad_videos.dropped:
            text += f" (of {len(bad_videos.reasons)} files)"
        if self.failed_reads:
            text += f", {self.failed_reads} failed reads"
        if self._pool.restarts:
            text += f", {self._pool.restarts} workers replaced"
        if memory:
            text += f", at most {memory / 2**20:.0f} MiB per worker"
        return text + (f"\n{bad_videos.table()}" if bad_videos.dropped else "")

    def close(self) -> None:
        """Stops the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
