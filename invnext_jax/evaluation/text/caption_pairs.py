"""Pairs of training videos and captions: a random caption of each video of a batch.

Shape key: b videos, j captions.
"""

from typing import NamedTuple

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.captions import Captions


class CaptionPairs(NamedTuple):
    """Caption indices by video: those of manifest row i are order_j[start[i] : start[i + 1]]."""

    order_j: np.ndarray
    start: np.ndarray

    def choose(self, rows_b: np.ndarray, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Chooses a random caption of each video.

        A video without captions is replaced by the first video of the batch that has some. The loss
        does not count equal videos as negatives of each other.

        Returns:
          Positions of the videos in `rows_b`, and indices of the captions, int [b] each.

        Raises:
          UserError: no video has a caption.
        """
        counts_b = self.start[rows_b + 1] - self.start[rows_b]
        if not counts_b.any():
            raise UserError(
                "no video of a training batch has a caption: leave videos without captions out of "
                "config.train_manifest, or raise config.text.batch_size"
            )
        first = int(np.argmax(counts_b > 0))
        place_b = np.where(counts_b > 0, np.arange(len(rows_b)), first)
        pick_b = np.random.default_rng(seed).random(len(rows_b))[place_b] * counts_b[place_b]
        return place_b, self.order_j[self.start[rows_b[place_b]] + pick_b.astype(np.int64)]


def group_pairs(captions: Captions, rows: int) -> CaptionPairs:
    """Groups captions by the row of their video, for a manifest of `rows` rows."""
    order_j = np.argsort(captions.row_j, kind="stable")
    return CaptionPairs(order_j, np.searchsorted(captions.row_j[order_j], np.arange(rows + 1)))
