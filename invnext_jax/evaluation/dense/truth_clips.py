"""Batches of clips with ground truth for training.

Shape key: b clips of a batch, n clips.
"""

import concurrent.futures
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.truth import BadTruth, SkippedRows, Truth, TruthBatches

THREADS = 4
_TRIES = 16  # maximum number of rows to try before giving up
Batch = dict[str, np.ndarray]


class TruthClips:
    """Batches of random clips with ground truth; each epoch has a different order.

    Attributes:
      rows: rows that are used, int [n].
      skipped: the rows that could not be read.
    """

    def __init__(self, truth: Truth, rows: Sequence[int], names: Sequence[str]):
        """Starts threads that read ahead.

        Args:
          truth: reader of the clips and their ground truth.
          rows: rows to use.
          names: names of the arrays to keep.

        Raises:
          UserError: there are no rows.
        """
        if not len(rows):
            raise UserError(f"{truth.name} has no training clips: add training data")
        self.rows, self._truth, self._names = np.asarray(rows), truth, tuple(names)
        self.skipped = SkippedRows()
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._ahead: dict[int, list] = {}

    def batch(self, step: int, batch_size: int, seed: int) -> Batch:
        """Returns the arrays [b ...] of a step. The result depends only on the arguments."""
        for number in (step, step + 1):
            if number not in self._ahead:
                places_b = self._places(number, batch_size, seed)
                self._ahead[number] = [self._pool.submit(self._load, p) for p in places_b]
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

    def _load(self, place: int) -> Mapping[str, np.ndarray]:
        """Reads the row at a position, or if it cannot be read, the next readable row."""
        for number in range(place, place + _TRIES):
            row = int(self.rows[number % len(self.rows)])
            try:
                return self._truth.load(row)
            except BadTruth as error:
                self.skipped.add(row, error)
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
