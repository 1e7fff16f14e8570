"""The batches of training clips, and the loading of their clips.

Batch n of a run contains the global clips n * B to (n + 1) * B - 1, and each process loads those at
its positions. The video of a global clip and its augmentation depend only on the seed and the
clip's number, not on the number of workers or processes. If a video is bad, the choice of its
substitute depends on the same two numbers. Each group of `repeats` consecutive clips comes from one
video, which is decoded once. A group is the unit of work. See docs/data.md.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import sources
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.clips import MISSING_FRAMES, BadClip
from invnext_jax.data.copies import identify_rows
from invnext_jax.data.storage_retries import StorageMonitor, load_in_worker, protocols_of
from invnext_jax.data.train_iterator import BatchBuffer, GroupResult, TrainIterator
from invnext_jax.data.train_order import CLIP_STREAM, Mixture
from invnext_jax.errors import UserError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.worker_pool import OrderedPool, open_pool

MAX_TRIES = 100  # maximum number of videos tried for one position in a batch
WORKER_FAILURES = ("time limit", "worker died")  # failures that may have taken the full timeout
MAX_WORKER_FAILURES = 5  # maximum number of tries in which the worker hangs or dies


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

    def __init__(  # noqa: PLR0913, one caller, which passes keywords
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
        data_config: Mapping[str, Any],
        processes: int = 1,
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
        # Otherwise, every host would read whole shards, of which it needs only a small part.
        self._reads_shards_ahead = 2 * self.batch_size * processes >= self.global_batch
        self.mixture, self.bad_videos, self.repeats = mixture, bad_videos, repeats
        self.storage = StorageMonitor()
        self._seed, self._load, self._config = seed, load, data_config
        self.workers, self._prefetch, self._timeout = workers, prefetch, clip_seconds

    def __iter__(self) -> TrainIterator:
        return TrainIterator(self)

    @property
    def manifest(self) -> manifest_lib.Manifest:
        """The rows of all manifests."""
        return self.mixture.manifest

    @property
    def videos(self) -> int:
        """Number of rows of all manifests that are trained on."""
        return self.mixture.videos

    @property
    def groups(self) -> int:
        """Number of groups of clips in a batch of this process."""
        return self.batch_size // self.repeats

    def describe(self, steps: int) -> str:
        """Formats a table of the sources: epochs in a run of `steps` steps, and options.

        Lines follow if rows of the manifest or frames of a rendered world are repeated.
        """
        describe = functools.partial(sources.describe_options, self._config)
        table = self.mixture.table(steps * self.global_batch, describe)
        if blocks := self.mixture.describe_blocks():
            table += f"\n{blocks}"
        if absent := self.mixture.absent:
            table += (
                f"\nwarning: no video of {', '.join(map(repr, absent))} is trained on, because "
                "config.data.held_out holds out all of them: lower it"
            )
        if repeats := count_repeats(self.manifest):
            table += (
                f"\nwarning: {repeats:,} rows of the manifest repeat an earlier row (same file, "
                "start and end) and count as separate videos in the epochs"
            )
        return "\n".join([table, *sources.describe_worlds(self._config, self.manifest.file)])

    def unused_options(self) -> dict[str, str]:
        """Returns the options of `config.data` that affect no video, with the reason."""
        return sources.unused_options(self._config, self.mixture.manifest)

    def open_pool(self, first_batch: int, buffer: BatchBuffer) -> OrderedPool:
        """Starts workers that write this process's clips, from `first_batch` on, to `buffer`."""
        by_file = bool(self.mixture.blocks)  # a worker has few of its files open otherwise
        return open_pool(
            lambda task, worker: self._load_group(first_batch * self.groups + task, worker, buffer),
            self._load,
            workers=self.workers,
            prefetch=-(-self._prefetch // self.repeats),
            timeout=self._timeout,
            protocols=protocols_of(self.mixture.manifest),
            file_of_task=functools.partial(self._file_of, first_batch) if by_file else None,
        )

    def _file_of(self, first_batch: int, task: int) -> str:
        """Returns the file of a task of `open_pool`."""
        first = self._first_clip_of(first_batch * self.groups + task)
        return self.mixture.get_video(first // self.repeats).path

    def _first_clip_of(self, number: int) -> int:
        """Returns the global number of the first clip in this process's group `number`."""
        batch, position = divmod(number, self.groups)
        return batch * self.global_batch + self._group_starts[position]

    def _read_ahead(self, number: int, worker: SupervisedWorker) -> None:
        """Lets a worker read a later video of a shard into the page cache while it decodes.

        With a block shuffle, it also reads a whole shard of the next block, if the processes of
        this host load at least half of the clips.
        """
        position = self._first_clip_of(number) // self.repeats
        record = self.mixture.get_video(position)
        if record.record is not None:
            file = self.mixture.get_file_ahead(position) if self._reads_shards_ahead else None
            worker.prefetch(record, *([file] if file is not None else []))

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
            seeds = [(self._seed, first + i, attempt, CLIP_STREAM) for i in range(self.repeats)]
            if not self._config["augment"]:
                seeds = [None]
            clips = load_in_worker(
                worker, self.mixture.manifest, row, seeds, self._timeout, self.storage
            )
            if not isinstance(clips, BadClip):
                missing = int(clips.pop(MISSING_FRAMES, [0])[0])
                written = buffer.write(batch, position * self.repeats, clips)
                return GroupResult(written, bad_clips, row, missing)
            bad_clips.append(clips)
            worker_failures += clips.kind in WORKER_FAILURES
            if self.bad_videos.fail_on_bad or worker_failures == MAX_WORKER_FAILURES:
                break
        return GroupResult(None, bad_clips)


def count_repeats(rows: manifest_lib.Manifest) -> int:
    """Returns how many rows have the video, start and end of an earlier row.

    The rows are compared as in `copies.identify_rows`.

    Shape key: 3 = (hash of the key, start, end), n rows, 2 = (start, end).
    """
    keys, times_n2 = identify_rows(rows)
    keys_3n = np.zeros((3, len(rows)), np.int64)
    keys_3n[0] = np.fromiter(map(hash, keys), np.int64, len(rows))
    keys_3n[1:] = (times_n2 + 0.0).view(np.int64).T  # 0.0 and -0.0 are equal
    keys_3n = keys_3n[:, np.lexsort(keys_3n)]
    return int((keys_3n[:, 1:] == keys_3n[:, :-1]).all(axis=0).sum())
