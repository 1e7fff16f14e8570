"""The videos of an evaluation: its manifests, their hashes, batches, labels and ground truth.

All of them are read when they are first used, so that unused ones cost nothing.

Shape key: b videos, t frames, h w pixels, c channels.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import ml_collections

from invnext_jax.checkpointing import run_metadata, video_digests
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, sources, video_io
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError
from invnext_jax.evaluation.clip_settings import check_default_clip
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.dense.stored_truth import TruthInMemory
from invnext_jax.evaluation.feature_store.clips_in_memory import (
    ClipsInMemory,
    LabeledVideos,
    read_videos,
)
from invnext_jax.evaluation.feature_store.feature_cache import FeatureSource, feature_key
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.truth.truth import Truth
from invnext_jax.monitoring.progress import ProgressMeter

SPLITS = {"train": "training", "val": "held-out"}  # the values are used in messages
EXAMPLES = 3  # maximum number of videos that are listed in a note
IN_MEMORY_BYTES = 2**28  # clips of a split up to this size stay in memory
_METER_FILES = 10_000  # minimum number of files for which `hash_videos` shows its progress


class EvaluationData:
    """The training videos and the held-out videos of an evaluation.

    Attributes:
      config: the config of the evaluation.
      tasks: names of the tasks to evaluate; both splits have labels for them.
      manifests: the manifest of each split; "" for data sets without manifests.
      digests: hash of the contents of each manifest.
      video_digests: hash of the videos of each manifest, see `hash_videos`.
      unreadable: rows of each split that could not be read so far.
      equal_views: rows of each split whose views were equal so far.
    """

    def __init__(self, config: Any, tasks: tuple[str, ...]):
        self.config = config
        self.unreadable: dict[str, set[int]] = {split: set() for split in SPLITS}
        self.equal_views: dict[str, set[int]] = {split: set() for split in SPLITS}
        self._videos: dict[str, tuple[LabeledVideos, pipeline.EvalDataset]] = {}
        self._truths: dict[tuple, Truth] = {}
        self._read: dict[str, manifest_lib.Manifest] = {}
        self.tasks = tasks
        self.manifests = {split: config[f"{split}_manifest"] for split in SPLITS}
        self.digests = {
            split: manifest_lib.hash_manifests(names) if names else ""
            for split, names in self.manifests.items()
        }
        rules = AccessRules.from_config(config.data)
        self.video_digests = {
            split: hash_videos(names, rules, config.data.clip_seconds) if names else ""
            for split, names in self.manifests.items()
        }

    def batches(
        self,
        split: str,
        *,
        views: int = 1,
        rows: Sequence[int] | None = None,
        block: int | None = None,
    ) -> pipeline.EvalDataset | ClipsInMemory:
        """Returns the batches of a split in manifest order. Rows with index -1 are padding.

        See `pipeline.make_eval_dataset` for the arguments. A batch has about `config.batch_size`
        clips for any number of views. If all clips of the split are small, they are read once and
        stay in memory.
        """
        options = {"batch_size": self.videos_of_batch(views), "rows": rows, "block": block}
        if views == 1 and self._clip_bytes(split) <= IN_MEMORY_BYTES:
            videos, dataset = self._read_videos(split)
            return ClipsInMemory(videos, dataset.manifest, dataset.bad_videos, **options)
        manifest = self.manifests[split]
        options |= {"bad_rows": self.unreadable[split], "equal_rows": self.equal_views[split]}
        return pipeline.make_eval_dataset(
            self.config.data, manifest=manifest, views=views, **options
        )

    def videos_of_batch(self, views: int) -> int:
        """Returns the number of videos of a batch."""
        return max(1, self.config.batch_size // views)

    def open_truth(self, settings: Any, split: str) -> Truth:
        """Returns the truth of a split for the section of an evaluator.

        Evaluators with the same data share it. Rows that were read stay in memory, up to
        `settings.memory_gb`.

        Args:
          settings: the section; see `truth_source.open_truth`.
          split: "train" or "val".
        """
        key = split, *(settings.get(name) for name in truth_source.OPTIONS)
        if key not in self._truths:
            truth = truth_source.open_truth(settings, split, self.config)
            self._truths[key] = TruthInMemory(truth, settings.memory_gb)
        return self._truths[key]

    def feature_source(self, split: str, views: int) -> FeatureSource:
        """Returns what `FeatureCache.get` needs to read the videos of a split."""
        data = self.config.data
        return FeatureSource(
            rows=len(self.read_manifest(split)),
            clip_shape=(data.frames, data.size, data.size, 3),
            batch_size=self.videos_of_batch(views),
            make_batches=lambda rows, block: self.batches(
                split, views=views, rows=rows, block=block
            ),
        )

    def read_manifest(self, split: str) -> manifest_lib.Manifest:
        """Returns the manifest of a split. The first call reads it."""
        if split not in self._read:
            rules = AccessRules.from_config(self.config.data)
            self._read[split] = manifest_lib.read_manifest(self.manifests[split], rules)
        return self._read[split]

    def videos(self, split: str) -> LabeledVideos:
        """Returns all videos of a split. The first call reads them into memory."""
        return self._read_videos(split)[0]

    def _read_videos(self, split: str) -> tuple[LabeledVideos, pipeline.EvalDataset]:
        """Returns all videos of a split and the dataset from which they were read."""
        if split not in self._videos:
            dataset = pipeline.make_eval_dataset(
                self.config.data,
                manifest=self.manifests[split],
                batch_size=self.videos_of_batch(1),
                bad_rows=self.unreadable[split],
            )
            self._videos[split] = read_videos(dataset, f"{SPLITS[split]} videos read"), dataset
        return self._videos[split]

    def _clip_bytes(self, split: str) -> int:
        source = self.feature_source(split, 1)
        return source.rows * math.prod(source.clip_shape)

    def describe_videos(self) -> list[str]:
        """Returns sentences about unreadable videos, small worlds, and square videos."""
        notes = []
        for split, words in SPLITS.items():
            notes += sources.describe_worlds(self.config.data, self.manifests[split])
            if rows := sorted(self.unreadable[split]):
                manifest = self.read_manifest(split)
                examples = ", ".join(ascii(manifest[row].name) for row in rows[:EXAMPLES])
                notes.append(
                    f"{len(rows)} of {len(manifest)} {words} videos could not be read, such as "
                    f"{examples}. They are left out."
                )
            equal = len(self.equal_views[split])
            if equal and equal == len(self.read_manifest(split)) - len(rows):
                notes.append(
                    f"The crops of each of the {equal} {words} videos are equal, because their "
                    "frames are square. One crop (view) gives the same results in less time."
                )
        return notes

    def feature_key(self, split: str, encoder_key: str) -> str:
        """Returns the key for the features of a split; see `feature_cache.feature_key`."""
        data = run_metadata.config_to_json(self.config.data)
        return feature_key(encoder_key, self.digests[split], self.video_digests[split], data)


def resolve(config: Any, encoder: FrozenEncoder) -> ml_collections.FrozenConfigDict:
    """Fills in the encoder's sizes and the paths of the manifests.

    Raises:
      UserError: the clips cannot be divided into the patches or time slots of the encoder; or the
        config does not specify them, and those of the encoder have too many patches.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    data = config.data
    is_default = not (data.frames and data.size)
    data.frames, data.size = data.frames or encoder.frames, data.size or encoder.size
    if is_default:
        advice = "set config.data.frames and config.data.size"
        check_default_clip(data.frames, data.size, encoder.patch, advice)
    data.short_side = data.short_side or data.size
    sections = [section for section in config.values() if _has_manifests(section)]
    for section in (config, *sections):
        for name in ("train_manifest", "val_manifest"):
            section[name] = manifest_lib.find_manifests(join_root(data.root, section[name]))
    data.manifest = config.train_manifest
    for name, part, value in (
        ("size", f"patch of {encoder.patch} pixels", encoder.patch),
        ("frames", f"time slot of {encoder.tubelet} frames", encoder.tubelet),
    ):
        if data[name] % value:
            raise UserError(
                f"config.data.{name}={data[name]} must be divisible by the encoder's {part}"
            )
    return ml_collections.FrozenConfigDict(config)


def drop_manifests(config: Any) -> ml_collections.FrozenConfigDict:
    """Returns a config of data sets without manifests, whose default manifests need not exist."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.train_manifest = config.val_manifest = config.data.manifest = ""
    return ml_collections.FrozenConfigDict(config)


def _has_manifests(section: Any) -> bool:
    return isinstance(section, ml_collections.ConfigDict) and "train_manifest" in section


def join_root(root: str, names: str) -> str:
    """Prepends the folder `root` to relative paths in a comma-separated list of manifests.

    Names of remote manifests and rendered worlds do not change.
    """
    if not root or not names:
        return names
    parts = (name.strip() for name in names.split(","))
    return ",".join(
        name if "://" in name or video_io.is_world(name) else os.path.join(root, name)
        for name in parts
    )


def hash_videos(manifest: str | Manifest, rules: AccessRules, seconds: float) -> str:
    """Returns a hash of the contents of all local files that manifests refer to.

    Args:
      manifest: the rows, or names of manifests, separated by commas.
      rules: which files the rows of the names may refer to.
      seconds: time limit, see `video_digests.digest_files`.
    """
    if isinstance(manifest, str):
        names = manifest_lib.split_names(manifest)
        local = [name for name in names if not video_io.is_world(name)]
        manifest = manifest_lib.read_manifest(local, rules) if local else None
    paths = video_digests.list_files(manifest) if manifest else []
    digest = hashlib.sha256()
    with ProgressMeter(len(paths), "file", quiet=len(paths) < _METER_FILES) as meter:
        for number, found in enumerate(video_digests.digest_files(paths, seconds), 1):
            digest.update(f"{found}\n".encode())
            meter.update(number, "hashed")
    return digest.hexdigest()
