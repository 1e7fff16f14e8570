"""Batches of clips that are in memory, for data sets so small that they need not be read again.

Shape key: b clips, t frames, h w pixels, c channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from invnext_jax.data import pipeline
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.manifest import LABEL_PREFIX, Manifest
from invnext_jax.evaluation import features
from invnext_jax.monitoring.progress import ProgressMeter


class LabeledVideos(NamedTuple):
    """All readable videos of a split, in memory.

    Attributes:
      video_bthwc: uint8 clips.
      labels: int32 labels [b] of each task; a negative number means no label.
      index_b: int32 row numbers in the manifest, ascending.
    """

    video_bthwc: np.ndarray
    labels: Mapping[str, np.ndarray]
    index_b: np.ndarray


def read_videos(dataset: pipeline.EvalDataset, title: str) -> LabeledVideos:
    """Reads all videos of a dataset into memory and removes padding.

    Args:
      dataset: batches with one view of each video.
      title: text that is shown with the progress.
    """
    videos, labels, index, done = [], [], [], 0
    with ProgressMeter(len(dataset.manifest), "video", quiet=jax.process_index() > 0) as meter:
        for batch in dataset:
            real_b = batch["index"] >= 0
            videos.append(batch["video"][real_b])
            index.append(batch["index"][real_b])
            labels.append({k: v[real_b] for k, v in features.task_labels(batch).items()})
            done += len(index[-1])
            meter.update(done, title)
    joined = {task: np.concatenate([part[task] for part in labels]) for task in labels[0]}
    return LabeledVideos(np.concatenate(videos), joined, np.concatenate(index))


class ClipsInMemory:
    """Yields the batches that `pipeline.EvalDataset` yields for one view of each video.

    Attributes:
      manifest: the manifest.
      bad_videos: tracker of the pass that read the videos.
    """

    def __init__(
        self,
        videos: LabeledVideos,
        manifest: Manifest,
        bad_videos: BadVideoTracker,
        *,
        batch_size: int,
        rows: Sequence[int] | None = None,
        block: int | None = None,
    ):
        """Selects videos; see `pipeline.make_eval_dataset` for the keyword arguments."""
        self.manifest, self.bad_videos = manifest, bad_videos
        self._rows = range(len(manifest)) if rows is None else rows
        self._videos, self._batch_size = videos, batch_size
        self._block = block or max(1, len(manifest))

    def __len__(self) -> int:
        """Returns the number of batches if no video is bad."""
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches in the order of the manifest; rows with index -1 are padding."""
        index_b = self._videos.index_b
        place_b = np.flatnonzero(np.isin(index_b, np.asarray(self._rows, np.int64)))
        ends = np.flatnonzero(np.diff(index_b[place_b] // self._block)) + 1
        for part_b in np.split(place_b, ends):
            for first in range(0, len(part_b), self._batch_size):
                yield self._batch(part_b[first : first + self._batch_size])

    def _batch(self, place_b: np.ndarray) -> dict[str, np.ndarray]:
        columns = {LABEL_PREFIX + task: label_b for task, label_b in self._videos.labels.items()}
        arrays = {"video": self._videos.video_bthwc, "index": self._videos.index_b, **columns}
        batch = {name: array[place_b] for name, array in arrays.items()}
        return pipeline.pad_batch(batch, self._batch_size)
