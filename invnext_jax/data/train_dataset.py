"""The order of the training videos, and the loading of their clips.

The order is infinite. Either all rows occur equally often, or each source makes up a given fraction
of the order. A source is reshuffled after each pass over it. Any position of the order can be
computed without computing the earlier positions.

Batch n of a run contains the global clips n * B to (n + 1) * B - 1, and each process loads those at
its positions. The video of a global clip and its augmentation depend only on the seed and the
clip's number, not on the number of workers or processes. If a video is bad, the choice of its
substitute depends on the same two numbers. Each group of `repeats` consecutive clips comes from one
video, which is decoded once. A group is the unit of work. See docs/data.md.
"""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import sources
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.clips import MISSING_FRAMES, BadClip, make_rng
from invnext_jax.data.storage_retries import StorageMonitor, load_in_worker, protocols_of
from invnext_jax.data.train_iterator import BatchBuffer, GroupResult, TrainIterator
from invnext_jax.errors import UserError
from invnext_jax.workers.worker_pool import OrderedPool, SupervisedWorker, open_pool

MAX_TRIES = 100  # maximum number of videos tried for one position in a batch
WORKER_FAILURES = ("time limit", "worker died")  # failures that may have taken the full timeout
MAX_WORKER_FAILURES = 5  # maximum number of tries in which the worker hangs or dies
CLIP_STREAM, SUBSTITUTE_STREAM = 0, 1  # random streams
MAX_TABLE_ROWS = 20
WEIGHT_STEPS = 100  # weights are rounded to multiples of the smallest weight / 100


class VideoFileSource:
    """A grain data source of all or selected rows of a manifest.

    Args:
      manifest: The manifest.
      rows: Numbers of the selected rows, in order. None selects all rows.
    """

    def __init__(self, manifest: manifest_lib.Manifest, rows: Sequence[int] | None = None):
        self.manifest = manifest
        self._rows = range(len(manifest)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> manifest_lib.VideoRecord:
        return self.manifest[int(self._rows[index])]

    def __repr__(self) -> str:
        return f"VideoFileSource(rows={len(self)})"


class Mixture:
    """Infinite order of a manifest's rows.

    Args:
      manifest: The manifest.
      weights: A (source, weight) pair for each `source` in the manifest. If empty, all rows occur
          equally often.
      seed: Seed of the order.
      rows: Numbers of the rows that occur, in ascending order. None selects all rows.

    Attributes:
      manifest: The manifest.
      videos: Number of rows that occur.
      shares: Maps the name of each source to its fraction of the order.

    Raises:
      UserError: A source has no weight, a weight has no source, or a weight is not a positive
          number.
    """

    def __init__(
        self,
        manifest: manifest_lib.Manifest,
        weights: Sequence[tuple[str, float]],
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        self.manifest, self._seed = manifest, seed
        rows = range(len(manifest)) if rows is None else rows
        self.videos = len(rows)
        self._counts = collections.Counter(manifest.sources[row] for row in rows)
        if not weights:
            source = grain.MapDataset.source(VideoFileSource(manifest, rows))
            self._order = source.seed(seed).shuffle().repeat()
            self._rows, self._probabilities = [rows], np.ones(1)
            self.shares = {name: n / self.videos for name, n in self._counts.items()}
            return
        sources.check_weights(weights, collections.Counter(manifest.sources))
        # A source may be in the manifest, but not among the rows.
        weights = [(name, weight) for name, weight in weights if name in self._counts]
        names = [name for name, _ in weights]
        least = min(weight for _, weight in weights)
        parts = np.array([round(WEIGHT_STEPS * weight / least) for _, weight in weights], object)
        self._rows = _rows_by_source(manifest, names, rows)
        self._probabilities = (parts / parts.sum()).astype(float)
        self.shares = dict(zip(names, self._probabilities.tolist(), strict=True))
        shuffled = []
        for number, rows in enumerate(self._rows):
            source = grain.MapDataset.source(VideoFileSource(manifest, rows))
            source_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            shuffled.append(source.seed(source_seed).shuffle().repeat())
        self._order = grain.MapDataset.mix(shuffled, weights=parts.tolist())

    def get_video(self, position: int, attempt: int = 0) -> manifest_lib.VideoRecord:
        """Returns the video at a position of the order, or a substitute if `attempt` is above 0."""
        if not attempt:
            return self._order[position]
        rng = make_rng(self._seed, position, attempt, SUBSTITUTE_STREAM)
        source = rng.choice(len(self._rows), p=self._probabilities) if len(self._rows) > 1 else 0
        rows = self._rows[source]
        return self.manifest[int(rows[int(rng.integers(len(rows)))])]

    def table(self, clips: int, describe: Callable[[str], str]) -> str:
        """Formats a table of the sources for a run of `clips` clips.

        Its columns are the rows, the share of the clips, the epochs (clips / rows), and the
        options that `describe` returns for a source.
        """
        width = max(len("source"), *(len(name) for name in self.shares))
        lines = [f"{'source':{width}} {'rows':>11} {'share':>8} {'epochs':>8}  options"]
        for name, share in list(self.shares.items())[:MAX_TABLE_ROWS]:
            epochs = share * clips / self._counts[name]
            numbers = f"{self._counts[name]:11,} {share:8.2%} {epochs:8.2f}"
            lines.append(f"{name:{width}} {numbers}  {describe(name)}")
        if len(self.shares) > MAX_TABLE_ROWS:
            lines.append(f"and {len(self.shares) - MAX_TABLE_ROWS} more")
        return "\n".join(lines)


def _rows_by_source(
    manifest: manifest_lib.Manifest, names: Sequence[str], rows: Sequence[int]
) -> list[np.ndarray]:
    """Returns those of the given rows that each source has, in ascending order."""
    numbers = {name: number for number, name in enumerate(names)}
    source_of_row = np.fromiter((numbers[manifest.sources[row]] for row in rows), np.int32)
    rows = np.asarray(rows)
    return [rows[source_of_row == number] for number in range(len(names))]


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
        if repeats := sources.count_repeats(self.manifest):
            table += (
                f"\nwarning: {repeats:,} rows of the manifest repeat an earlier row (same path, "
                "record, start and end) and count as separate videos in the epochs"
            )
        return "\n".join([table, *sources.describe_worlds(self._config, self.manifest.file)])

    def unused_options(self) -> dict[str, str]:
        """Returns the options of `config.data` that affect no video, with the reason."""
        return sources.unused_options(self._config, self.mixture.manifest)

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
            seeds = [(self._seed, first + i, attempt, CLIP_STREAM) for i in range(self.repeats)]
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
