"""Readers of ground truth that avoid repeated work: rows in memory, and stored tokens.

Shape key: t time slots, n tokens of a slot, d width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from invnext_jax.evaluation.features import VideoFeatures
from invnext_jax.evaluation.truth.truth import BadTruth, Truth


class TruthInMemory:
    """A truth whose rows stay in memory after they were read, up to a total size.

    Attributes:
      name: see `Truth`.
      videos: see `Truth`.
      video_names: see `Truth`.
    """

    def __init__(self, truth: Truth, max_gb: float):
        """Wraps a truth; `max_gb` is the largest size of the rows in memory in gigabytes."""
        self.name, self.videos, self.video_names = truth.name, truth.videos, truth.video_names
        self._truth, self._free = truth, max_gb * 1e9
        self._rows: dict[int, Mapping[str, np.ndarray] | BadTruth] = {}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._truth)

    def load(self, row: int) -> Mapping[str, np.ndarray]:
        """Reads a row; see `Truth.load`. The arrays must not be changed."""
        found = self._rows.get(row)
        if found is None:
            found = self._read(row)
        if isinstance(found, BadTruth):
            raise BadTruth(str(found), found.kind)
        return found

    def _read(self, row: int) -> Mapping[str, np.ndarray] | BadTruth:
        try:
            found = self._truth.load(row)
        except BadTruth as error:
            # The traceback of `error` would keep the arrays of its frames in memory.
            self._rows[row] = BadTruth(str(error), error.kind)
            return self._rows[row]
        size = sum(array.nbytes for array in found.values())
        if size <= self._free:
            self._free -= size
            self._rows[row] = found
        return found


class TruthWithTokens:
    """A truth with the stored tokens of a frozen encoder, float32 [t n d], in the array "tokens".

    Attributes:
      name: see `Truth`.
      videos: see `Truth`.
      video_names: see `Truth`.
    """

    def __init__(self, truth: Truth, features: VideoFeatures):
        """Adds tokens to a truth whose rows are those of a manifest.

        Args:
          truth: the truth.
          features: dense features of the same manifest.
        """
        self.name, self.videos, self.video_names = truth.name, truth.videos, truth.video_names
        self._truth, self._features = truth, features
        self._place = {int(row): place for place, row in enumerate(features.index_b)}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._truth)

    def load(self, row: int) -> dict[str, Any]:
        """Reads a row; see `Truth.load`."""
        if row not in self._place:
            raise BadTruth(f"row {row} has no features, because its video is bad", "missing")
        tokens = self._features.arrays["tokens"].take(np.array([self._place[row]]))
        middle = self._features.views // 2
        return {**self._truth.load(row), "tokens": np.asarray(tokens[0, middle], np.float32)}
