"""Builds the training dataset (infinite, shuffled) and the evaluation dataset (one ordered pass).

A batch is a flat dict: `video` uint8 [b t h w c] RGB, `index` int32 [b] (row of the manifest) and
int32 [b] for each `label_<task>` column.

Shape key: b clips, t frames, h w pixels, c channels.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from invnext_jax.data import access_rules, sources
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.clips import BY_SOURCE_FIELDS, MISSING_FRAMES, BadClip, LoadClip
from invnext_jax.data.held_out import training_rows
from invnext_jax.data.storage_retries import StorageMonitor, load_in_worker, protocols_of
from invnext_jax.data.train_dataset import TrainDataset
from invnext_jax.data.train_order import Mixture
from invnext_jax.errors import UserError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.worker_pool import count_workers, open_pool

LEAST = {"frames": 1, "workers": -1, "prefetch": 1, "repeats": 1}  # smallest values of options
LEAST |= {"held_out": 0, "shuffle_block_size": 0}


def check_config(data_config) -> None:
    """Checks the options of `config.data` that do not depend on the content of the manifest.

    Raises:
      UserError: An option has an invalid value.
    """
    for name, bound in LEAST.items():
        if data_config[name] < bound:
            raise UserError(f"config.data.{name}={data_config[name]} must be at least {bound}")
    if data_config.on_bad not in ("drop", "fail"):
        raise UserError(f"config.data.on_bad={data_config.on_bad!r} must be 'drop' or 'fail'")
    if not 0 <= data_config.max_bad_share <= 1:
        share = data_config.max_bad_share
        raise UserError(f"config.data.max_bad_share={share} must be between 0 and 1")
    if data_config.clip_seconds <= 0:
        raise UserError(f"config.data.clip_seconds={data_config.clip_seconds} must be positive")
    if data_config.repeats > 1 and not data_config.augment:
        raise UserError(
            f"the config.data.repeats={data_config.repeats} clips of a video would be equal, "
            "because config.data.augment is False: set repeats to 1"
        )
    if not data_config.manifest:
        raise UserError(
            "config.data.manifest is empty: set it to the CSV file that lists the videos"
        )
    check_clip_options(data_config)
    access_rules.check_config(data_config)


def check_clip_options(data_config) -> None:
    """Checks how frames and crops are drawn, and the options of `config.data.by_source`.

    Raises:
      UserError: An option has an invalid value.
    """
    sources.check_clip_options({name: data_config[name] for name in BY_SOURCE_FIELDS}, "")
    for source, overrides in data_config.by_source.items():
        if not hasattr(overrides, "items"):
            raise UserError(
                f"config.data.by_source.{source}={overrides!r} must be a dict of fields"
            )
        for name, value in overrides.items():
            field = f"config.data.by_source.{source}.{name}"
            if name not in BY_SOURCE_FIELDS:
                allowed = ", ".join(BY_SOURCE_FIELDS)
                raise UserError(f"{field}: only {allowed} can differ by source")
            kind = type(data_config[name])
            if not isinstance(value, (tuple, list) if kind in (tuple, list) else kind):
                raise UserError(f"{field}={value!r} must be a {kind.__name__}")
        fields = {name: overrides.get(name, data_config[name]) for name in BY_SOURCE_FIELDS}
        sources.check_clip_options(fields, f"by_source.{source}.")


def make_train_dataset(
    data_config,
    *,
    seed: int,
    batch_size: int,
    positions: Sequence[int] | None = None,
    bad_videos: BadVideoTracker | None = None,
    load: Callable | None = None,
    rows: Sequence[int] | None = None,
    processes: int = 1,
) -> TrainDataset:
    """Makes the training dataset: infinite shuffled batches with a resumable iterator.

    Args:
      data_config: `config.data`.
      seed: Non-negative seed of the order and the augmentation.
      batch_size: Number of clips per batch, over all processes.
      positions: Positions within each batch of the clips that this process loads, in ascending
          order. None selects all clips.
      bad_videos: Tracker of good and bad clips. None creates one from the config.
      load: Replaces `LoadClip` in tests. It must be defined in an importable module.
      rows: Rows of the manifest to draw from, in ascending order. None selects all rows that
          `config.data.held_out` does not hold out.
      processes: Number of processes that share the cores of this one, including it.

    Returns:
      A dataset of batches. Its iterator must be closed after use.

    Raises:
      UserError: The manifest is missing, empty or invalid, the weights, `by_source` or `held_out`
          do not match it, or the clips of this process do not form groups of `repeats`. During
          iteration: no video can be read, a video is bad and `on_bad` is "fail", or the share of
          bad clips exceeds `max_bad_share`.
    """
    rules = AccessRules.from_config(data_config)
    manifest = manifest_lib.read_manifest(data_config.manifest, rules)
    sources.check_names(data_config, manifest.sources)
    if rows is None:
        rows = training_rows(manifest, data_config.held_out)
    return TrainDataset(
        Mixture(manifest, data_config.weights, seed, rows, data_config.shuffle_block_size),
        load or LoadClip.from_config(data_config, manifest),
        workers=count_workers(data_config.workers, processes),
        prefetch=data_config.prefetch,
        clip_seconds=data_config.clip_seconds,
        seed=seed,
        batch_size=batch_size,
        repeats=data_config.repeats,
        positions=range(batch_size) if positions is None else positions,
        bad_videos=bad_videos or BadVideoTracker.from_config(data_config),
        data_config=data_config,
        processes=processes,
    )


CROP_POSITIONS = {1: (None,), 3: (0.0, 0.5, 1.0)}  # number of views -> positions of their crops


class EvalDataset:
    """Evaluation batches in the order of a manifest. Each iteration is one pass.

    Attributes:
      manifest: The manifest.
      bad_videos: Tracker of good and bad videos in the current pass.
      storage: Counter of failed reads.
      bad_rows: Rows of bad videos in all passes.
      equal_rows: Rows of videos whose views are equal, in all passes.
    """

    def __init__(  # noqa: PLR0913, one caller, which passes keywords
        self,
        manifest: manifest_lib.Manifest,
        load: Callable,
        *,
        batch_size: int,
        workers: int,
        prefetch: int,
        clip_seconds: float,
        views: int = 1,
        rows: Sequence[int] | None = None,
        block: int | None = None,
        bad_rows: set[int] | None = None,
        equal_rows: set[int] | None = None,
    ):
        self.manifest = manifest
        self.bad_videos, self.storage = BadVideoTracker(), StorageMonitor()
        self.bad_rows = set() if bad_rows is None else bad_rows
        self.equal_rows = set() if equal_rows is None else equal_rows
        self._rows = range(len(manifest)) if rows is None else rows
        self._positions, self._block = CROP_POSITIONS[views], block or max(1, len(manifest))
        self._load, self._batch_size = load, batch_size
        self._workers, self._prefetch, self._timeout = workers, prefetch, clip_seconds

    def __len__(self) -> int:
        """Returns the number of batches if no video is bad."""
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.bad_videos = BadVideoTracker()
        self.bad_videos.expect_videos(len(self.manifest))
        clips = (clip for row, clip in self._load_all() if self._count(row, clip))
        for _, block in itertools.groupby(clips, lambda clip: clip["index"][0] // self._block):
            while rows := list(itertools.islice(block, self._batch_size)):
                batch = {name: np.concatenate([clip[name] for clip in rows]) for name in rows[0]}
                yield pad_batch(batch, self._batch_size * len(self._positions))
        if not self.bad_videos.delivered and len(self._rows) == len(self.manifest):
            raise self.bad_videos.no_good_video_error()

    def _count(self, row: int, clip: dict[str, Any] | BadClip) -> bool:
        """Counts the clip of a row and returns whether it is good."""
        if isinstance(clip, BadClip):
            self.bad_rows.add(row)
            self.bad_videos.count_bad(clip)
            return False
        self.bad_videos.count_good()
        if len(self._positions) > 1 and (clip["video"] == clip["video"][:1]).all():
            self.equal_rows.add(row)
        if missing := int(clip.pop(MISSING_FRAMES, [0])[0]):
            self.bad_videos.count_short(self.manifest[int(clip["index"][0])].name, missing)
        return True

    def _load_all(self) -> Iterator[tuple[int, dict[str, Any] | BadClip]]:
        pool = open_pool(
            self._load_row,
            self._load,
            workers=min(self._workers, len(self._rows)),
            prefetch=self._prefetch,
            timeout=self._timeout,
            protocols=protocols_of(self.manifest),
        )
        try:
            for row in self._rows:
                yield int(row), pool.next_result()
        finally:
            pool.close()

    def _load_row(self, number: int, worker: SupervisedWorker) -> dict[str, Any] | BadClip | None:
        if number >= len(self._rows):  # the pool prefetches past the last row
            return None
        row = int(self._rows[number])
        arguments = self._positions, self._timeout, self.storage
        clip = load_in_worker(worker, self.manifest, row, *arguments)
        if isinstance(clip, BadClip):
            return clip
        # The worker overwrites this memory with its next clip.
        return {name: value.copy() for name, value in clip.items()}


def make_eval_dataset(
    data_config,
    *,
    manifest: str | manifest_lib.Manifest,
    batch_size: int,
    views: int = 1,
    rows: Sequence[int] | None = None,
    block: int | None = None,
    bad_rows: set[int] | None = None,
    equal_rows: set[int] | None = None,
    load: Callable | None = None,
) -> EvalDataset:
    """Makes the evaluation dataset, in manifest order and without augmentation.

    Clips consist of the frames at the center of equal segments.

    Args:
      data_config: `config.data`; its `manifest`, `weights` and `repeats` are not used.
      manifest: The manifest, or its name in the format of `config.data.manifest`.
      batch_size: Number of videos per batch. The last batch is padded with rows of `index` -1.
      views: Consecutive clips per video: 1 for the center crop, 3 also for both ends.
      rows: Rows of the manifest to read, ascending. None for all.
      block: Number of rows of the manifest after which a batch ends; None for all.
      bad_rows: Set to which the rows of bad videos are added; None for a new one.
      equal_rows: Set to which the rows of videos whose views are equal are added; None for a new
          one.
      load: Replaces `LoadClip` in tests. It must be defined in an importable module.

    Returns:
      An iterable of batches without bad videos. Each iteration starts its own workers.

    Raises:
      UserError: The manifest is missing, empty or invalid. During iteration: no video can be
          read, although all rows were requested.
    """
    if isinstance(manifest, str):
        manifest = manifest_lib.read_manifest(manifest, AccessRules.from_config(data_config))
    return EvalDataset(
        manifest,
        load or LoadClip.from_config(data_config, manifest),
        batch_size=batch_size,
        workers=count_workers(data_config.workers),
        prefetch=data_config.prefetch,
        clip_seconds=data_config.clip_seconds,
        views=views,
        rows=rows,
        block=block,
        bad_rows=bad_rows,
        equal_rows=equal_rows,
    )


def pad_batch(batch: dict[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """Appends rows of zeros with `index` -1 until a batch has `batch_size` rows."""
    missing = batch_size - len(batch["index"])
    if not missing:
        return batch
    padded = {
        name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
        for name, value in batch.items()
    }
    padded["index"][-missing:] = -1
    return padded
