"""The interface of ground-truth readers, and batches of their rows.

Shape key: b rows.
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from absl import logging

from invnext_jax import sanitize
from invnext_jax.errors import UserError

EXAMPLES = 3  # maximum number of skipped rows that are listed in a message
MAX_LOGGED = 20  # maximum number of damaged entries of a file that are logged
MAX_REASON = 200  # maximum number of characters of a reason


class BadTruth(Exception):  # noqa: N818, like `video.demux.BadVideo`
    """Raised if the clip or the ground truth of a row cannot be read. The row is skipped.

    Attributes:
      kind: Kind of error: "missing", "truncated", "wrong format", "no truth", or one of
          `video.demux.BadVideo.kind`.
    """

    def __init__(self, text: str, kind: str):
        super().__init__(text)
        self.kind = kind


class Truth(Protocol):
    """The interface of ground-truth readers. A row is a clip with its ground truth.

    Attributes:
      name: Name of the data set.
      videos: Index of the video of each row, int. Rows of the same video are not independent.
      video_names: Names of the videos, by which two evaluations check that they have the same
        videos. Empty for data with a manifest, whose hash shows this.
    """

    name: str
    videos: np.ndarray
    video_names: Sequence[str]

    def __len__(self) -> int:
        """Returns the number of rows."""
        ...

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads a clip and its ground truth.

        Returns:
          A dict with `video`, uint8 [t h w c] RGB, and some of: `depth`, float32 [t h w] in
          meters, 0 where unknown; `boxes`, float32 [t k 4] in [0, 1], and `present`, bool [t k];
          `ids`, int32 [t h w], 0 for the background; `points`, float32 [n t 2] in [0, 1], and
          `occluded`, bool [n t]; `joints`, float32 [t j 2] in pixels, and `visible`, bool [t j].

        Raises:
          BadTruth: A file of this row is missing or damaged.
        """
        ...


@dataclasses.dataclass
class SkippedRows:
    """Rows that were skipped in one pass over the data.

    Attributes:
      reasons: Reason for each skipped row.
      kinds: `BadTruth.kind` of each skipped row.
    """

    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    kinds: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, row: int, error: BadTruth) -> None:
        """Records a skipped row, and logs it the first time."""
        is_new = row not in self.reasons
        self.reasons[row] = sanitize.for_display(sanitize.shorten(str(error)))
        self.kinds[row] = error.kind
        if is_new:
            logging.warning("row %d skipped (%s): %s", row, error.kind, self.reasons[row])

    @property
    def first_reason(self) -> str:
        """Why the first skipped row was skipped."""
        return next(iter(self.reasons.values()), "there are no rows")

    def describe(self, rows: int) -> str:
        """Returns a sentence about the skipped rows out of `rows`; "" if there are none."""
        if not self.reasons:
            return ""
        examples = "; ".join(itertools.islice(self.reasons.values(), EXAMPLES))
        return f"{len(self.reasons)} of {rows} rows were skipped: {examples}"


class SkippedEntries:
    """Counts the damaged entries of a file, and logs the first `MAX_LOGGED` of them.

    Attributes:
      count: Number of damaged entries.
      reason: Place and reason of the last damaged entry; "it is empty" if there is none.
    """

    def __init__(self, path: str | os.PathLike):
        self._path, self.count, self.reason = path, 0, "it is empty"

    def add(self, place: str, reason: object) -> None:
        """Counts an entry.

        Args:
          place: Place in the file, such as "line 3".
          reason: Why the entry is invalid.
        """
        self.count += 1
        self.reason = f"{place}: {sanitize.shorten(str(reason), MAX_REASON)}"
        if self.count <= MAX_LOGGED:
            logging.warning("%s: skipped %s", self._path, self.reason)
        if self.count == MAX_LOGGED:
            logging.warning("%s: further damaged entries are counted but not logged", self._path)


class TruthBatches:
    """Batches of the readable rows, in order. Each iteration is one pass.

    Attributes:
      skipped: The rows that were skipped in the latest pass.
    """

    def __init__(
        self,
        truth: Truth,
        batch_size: int,
        *,
        rows: Sequence[int] | None = None,
        threads: int = 2,
        may_be_empty: bool = False,
    ):
        """Creates the batches.

        Args:
          truth: The reader. The arrays of all its rows must have the same shape.
          batch_size: Number of rows per batch. The last batch is padded with zeros.
          rows: Rows to read, in this order; None reads all rows.
          threads: Number of rows that are read at the same time. Threads suffice because image
              and video decoders release the global interpreter lock.
          may_be_empty: Whether it is no error if none of the rows can be read.
        """
        self._may_be_empty = may_be_empty
        self._truth, self._batch_size, self._threads = truth, batch_size, max(1, threads)
        self._rows = range(len(truth)) if rows is None else rows
        self.skipped = SkippedRows()

    def __len__(self) -> int:
        """Returns the number of batches if all rows can be read."""
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields dicts of the arrays of `Truth.load`, stacked to [b ...].

        The additional array `index`, int32 [b], contains the row, or -1 for padding.

        Raises:
          UserError: No row can be read, and `may_be_empty` is not set.
        """
        self.skipped, good = SkippedRows(), 0
        rows = self._load_all()
        while part := list(itertools.islice(rows, self._batch_size)):
            good += len(part)
            yield _stack(part, self._batch_size)
        if not good and not self._may_be_empty:
            raise UserError(
                f"{self._truth.name}: none of {len(self._rows)} clips can be read "
                f"({self.skipped.first_reason}): restore the files of the data set"
            )

    def _load_all(self) -> Iterator[dict[str, np.ndarray]]:
        ahead = self._threads + self._batch_size
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            waiting, rows = [], iter(self._rows)
            while True:
                for row in itertools.islice(rows, ahead - len(waiting)):
                    waiting.append((row, pool.submit(self._truth.load, row)))
                if not waiting:
                    return
                row, future = waiting.pop(0)
                try:
                    yield {"index": np.int32(row), **future.result()}
                except BadTruth as error:
                    self.skipped.add(row, error)


def _stack(rows: Sequence[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    missing = size - len(rows)
    if missing:
        batch = {
            name: np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)])
            for name, a in batch.items()
        }
        batch["index"][-missing:] = -1
    return batch
