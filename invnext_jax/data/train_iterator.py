"""Infinite, resumable iterator over the training batches, and the memory of the batches."""

import math
import threading
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data.clips import BadClip
from invnext_jax.errors import UserError
from invnext_jax.workers.process_worker import count_cores
from invnext_jax.workers.worker_pool import IN_PROCESS_THREADS


class RecycledMemory:
    """Allocates arrays, reusing the memory of arrays that are no longer referenced.

    The operating system zeroes new memory, which takes longer than copying a clip into it.
    """

    def __init__(self):
        self._free: dict[int, list[bytearray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an uninitialized array.

        Its memory is reused after the array and its views are deleted.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = bytearray(size)
        # If the base were an array, views would refer to the base and would not keep this array
        # alive.
        array = np.ndarray(shape, dtype, block)
        weakref.finalize(array, free.append, block).atexit = False
        return array


class BatchBuffer:
    """Buffer of incomplete batches, which several threads fill.

    Clips are copied directly from the workers' memory to their position in the batch. An additional
    copy to assemble the batch would take up to a tenth of the decoding time.

    Args:
      batch_size: Number of clips per batch.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._lock, self._memory = threading.Lock(), RecycledMemory()
        self._pending: dict[int, dict[str, np.ndarray]] = {}
        self._missing: dict[int, int] = {}  # number of missing clips in each incomplete batch

    def write(self, number: int, start: int, clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies clips, given as arrays [r ...], into batch `number`, starting at position `start`.

        Returns:
          The batch. Other threads may still be writing to it. The buffer forgets a batch once it
          is complete.
        """
        with self._lock:
            if number not in self._pending:
                self._pending[number] = {
                    name: self._memory.empty((self._batch_size, *value.shape[1:]), value.dtype)
                    for name, value in clips.items()
                }
                self._missing[number] = self._batch_size
            batch = self._pending[number]
        for name, value in clips.items():
            batch[name][start : start + len(value)] = value
        with self._lock:
            self._missing[number] -= len(clips["index"])
            if not self._missing[number]:
                del self._pending[number], self._missing[number]
        return batch


class GroupResult(NamedTuple):
    """Result of loading a group of clips.

    Attributes:
      batch: The batch to which the clips were written, or None if all tried videos are bad.
      bad_clips: The bad videos among those tried.
      row: Row of the video in the manifest.
      missing_frames: How many frames the video lacks, see `LoadClip`.
    """

    batch: dict[str, np.ndarray] | None
    bad_clips: list[BadClip]
    row: int = 0
    missing_frames: int = 0


class TrainIterator:
    """Iterator over a `train_dataset.TrainDataset`; close it after use."""

    def __init__(self, dataset: Any):
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
        batch, bad_clips, row, missing = self._pool.next_result()
        bad_videos, repeats = self._dataset.bad_videos, self._dataset.repeats
        for bad_clip in bad_clips:
            bad_videos.count_bad(bad_clip, repeats)
        if batch is None:
            raise bad_videos.too_many_tries_error(len(bad_clips))
        bad_videos.count_good(repeats)
        if missing:
            bad_videos.count_short(self._dataset.manifest[row].name, missing, repeats)
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
        return {
            "dropped_videos": self.dropped,
            "short_clips": self._dataset.bad_videos.short,
            "failed_reads": self.failed_reads,
        }

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
        """Describes what limits the speed and what to change; "" before the first clip."""
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

    def describe_workers(self) -> str:
        """Describes the workers and their memory after the first batch, for the log."""
        memory = self._pool.peak_memory() / 2**20 if self._pool else 0
        workers = self._dataset.workers
        if not workers:
            return f"data: {IN_PROCESS_THREADS} threads of this process"
        return (
            f"data: {workers} {'worker' if workers == 1 else 'workers'} on {count_cores()} cores, "
            f"with at most {memory:.0f} MiB of memory each after the first batch"
        )

    def summary(self) -> str:
        """Returns a summary of clips and workers for the log; "" before the first batch."""
        if self._pool is None:
            return ""
        bad_videos, memory = self._dataset.bad_videos, self._pool.peak_memory()
        text = f"data: {bad_videos.delivered} clips, {bad_videos.dropped} dropped"
        if bad_videos.dropped:
            text += f" (of {len(bad_videos.reasons)} files)"
        if bad_videos.short:
            text += f", {bad_videos.short} of videos with fewer frames than a clip can span"
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
