"""Training clips with ground truth, kept in memory if they fit and otherwise read in each step.

Shape key: b clips of a batch, n clips.
"""

import concurrent.futures
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.truth import BadTruth, SkippedRows, Truth, TruthBatches
from invnext_jax.monitoring.progress import ProgressMeter

THREADS = 4
_TRIES = 16  # maximum number of rows to try before giving up
Batch = dict[str, np.ndarray]


class TruthClips:
    """Batches of random clips with ground truth; each epoch has a different order.

    Attributes:
      rows: rows that are used, int [n]. If the clips are in memory, unreadable rows are removed.
      skipped: the rows that could not be read.
    """

    def __init__(self, truth: Truth, rows: Sequence[int], names: Sequence[str], memory_gb: float):
        """Reads the clips if they fit into memory.

        Args:
          truth: reader of the clips and their ground truth.
          rows: rows to use.
          names: names of the arrays to keep.
          memory_gb: maximum size in gigabytes of clips in memory.

        Raises:
          UserError: there are no rows, or none of them can be read.
        """
        if not len(rows):
            raise UserError(f"{truth.name} has no training clips: add training data")
        self.rows, self._truth, self._names = np.asarray(rows), truth, tuple(names)
        self.skipped, self._memory = SkippedRows(), None
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._ahead: dict[int, list] = {}
        if self._row_bytes() * len(self.rows) <= memory_gb * 1e9:
            self._read_all()

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """Returns the arrays [b ...] of a step. The result depends only on the arguments."""
        if self._memory is not None:
            place_b = self._places(step, batch_size, seed)
            return {name: array[place_b] for name, array in self._memory.items()}
        for number in (step, step + 1):
            if number not in self._ahead:
                rows_b = self.rows[self._places(number, batch_size, seed)]
                self._ahead[number] = [self._pool.submit(self._load, row) for row in rows_b]
        loaded = [future.result() for future in self._ahead.pop(step)]
        return {name: np.stack([arrays[name] for arrays in loaded]) for name in self._names}

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _places(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """Returns positions in `rows`. The last batch of an epoch is filled up from its start."""
        steps_of_epoch = -(-len(self.rows) // batch_size)
        epoch, part = divmod(step, steps_of_epoch)
        order_n = np.random.default_rng((seed, epoch)).permutation(len(self.rows))
        return np.take(order_n, part * batch_size + np.arange(batch_size), mode="wrap")

    def _row_bytes(self) -> int:
        loaded = self._load(int(self.rows[0]))
        return sum(loaded[name].nbytes for name in self._names)

    def _read_all(self) -> None:
        batches, parts, done = TruthBatches(self._truth, 8, rows=self.rows.tolist()), [], 0
        with ProgressMeter(len(self.rows), "clip", quiet=jax.process_index() > 0) as meter:
            for batch in batches:
                real_b = batch["index"] >= 0
                parts.append({name: batch[name][real_b] for name in (*self._names, "index")})
                done += int(real_b.sum())
                meter.update(done, "read")
        self.skipped = batches.skipped
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.rows = arrays.pop("index")
        self._memory = arrays

    def _load(self, row: int) -> Mapping[str, np.ndarray]:
        """Reads a row, or if it cannot be read, the next readable row."""
        for other in range(int(row), int(row) + _TRIES):
            try:
                return self._truth.load(other % len(self._truth))
            except BadTruth as error:
                self.skipped.add(other % len(self._truth), error)
        raise UserError(
            f"{self._truth.name}: {_TRIES} consecutive clips cannot be read "
            f"({self.skipped.first_reason}): restore the files of the data set"
        )


def read_sample(truth: Truth, rows: Sequence[int], count: int) -> Iterator[Mapping]:
    """Yields the arrays of up to `count` evenly spaced rows that can be read."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    for batch in TruthBatches(truth, 1, rows=[int(rows[place]) for place in chosen]):
        yield {name: array[0] for name, array in batch.items()}


def hold_out_videos(videos_n: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the rows by video, so that all windows of a video are in the same part.

    Args:
      videos_n: index of the video of each row.
      share: fraction of the videos that is held out; 0 for none.
      seed: seed of the random selection.

    Returns:
      The rows for training and the rows that are held out.

    Raises:
      UserError: there are too few videos to hold some out.
    """
    if share <= 0:
        return np.arange(len(videos_n)), np.arange(0)
    unique_b = np.random.default_rng(seed).permutation(np.unique(videos_n))
    if len(unique_b) < 2:
        raise UserError(
            "there is only one training video, so none can be held out to select a head: add "
            "training videos, or set a single learning rate and weight decay"
        )
    count = min(max(1, round(share * len(unique_b))), len(unique_b) - 1)
    held_n = np.isin(videos_n, unique_b[:count])
    return np.flatnonzero(~held_n), np.flatnonzero(held_n)
