"""Inputs of the evaluators: an encoder, its features, and the training and held-out videos.

All inputs are read or computed when they are first used, so that unused inputs cost nothing.

Shape key: b videos, t frames, h w pixels, c channels.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.checkpointing import run_metadata
from invnext_jax.data import fingerprints, pipeline, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.evaluation import features
from invnext_jax.evaluation.feature_cache import FeatureCache, feature_key
from invnext_jax.evaluation.features import VideoFeatures
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.monitoring.progress import ProgressMeter

SPLITS = {"train": "training", "val": "held-out"}  # the values are used in messages
_METER_FILES = 10_000  # from this number of files on, the progress of `hash_videos` is shown


class LabeledVideos(NamedTuple):
    """All readable videos of a split, in memory.

    Attributes:
      video_bthwc: uint8 clips.
      labels: int32 labels [b] of each task; a negative number means no label.
      index_b: int32 row numbers in the manifest.
    """

    video_bthwc: np.ndarray
    labels: dict[str, np.ndarray]
    index_b: np.ndarray


class EvaluationData:
    """The training videos and the held-out videos of an evaluation.

    Attributes:
      tasks: names of the tasks to evaluate; both splits have labels for them.
      manifests: the manifest of each split.
      digests: hash of the contents of each manifest.
      video_digests: hash of the videos of each manifest, see `hash_videos`.
    """

    def __init__(self, config: Any, tasks: tuple[str, ...]):
        self._config = config
        self._videos: dict[str, LabeledVideos] = {}
        self.tasks = tasks
        self.manifests = {split: config[f"{split}_manifest"] for split in SPLITS}
        self.digests = {s: manifest_lib.hash_manifests(m) for s, m in self.manifests.items()}
        rules = AccessRules.from_config(config.data)
        self.video_digests = {
            split: hash_videos(names, rules, config.data.clip_seconds)
            for split, names in self.manifests.items()
        }

    def batches(self, split: str) -> pipeline.EvalDataset:
        """Returns the batches of a split in manifest order. Rows with index -1 are padding."""
        config = self._config
        return pipeline.make_eval_dataset(
            config.data, manifest=self.manifests[split], batch_size=config.batch_size
        )

    def videos(self, split: str) -> LabeledVideos:
        """Returns all videos of a split. The first call reads them into memory."""
        if split not in self._videos:
            self._videos[split] = load_videos(self.batches(split))
        return self._videos[split]

    def feature_key(self, split: str, encoder_key: str) -> str:
        """Returns the key for the features of a split; see `feature_cache.feature_key`."""
        data = run_metadata.config_to_json(self._config.data)
        return feature_key(encoder_key, self.digests[split], self.video_digests[split], data)


class EvalInputs:
    """Inputs of an evaluator: an encoder, its features, and the videos of both splits.

    Attributes:
      name: name of the evaluated encoder in the rows: "encoder" or "random".
      dataset: videos, labels and batches of both splits.
    """

    def __init__(
        self,
        name: str,
        dataset: EvaluationData,
        load: Callable[[], FrozenEncoder],
        cache: FeatureCache,
    ):
        """Creates the inputs. `load` returns the encoder and is called at most once."""
        self.name, self.dataset = name, dataset
        self._load, self._cache = load, cache
        self._features: dict[str, VideoFeatures] = {}

    @functools.cached_property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder with its parameters."""
        return self._load()

    def features(self, split: str) -> VideoFeatures:
        """Returns the pooled features of a split, from the cache if possible."""
        if split not in self._features:
            key = self.dataset.feature_key(split, self.encoder.key)
            name = f"{self.name}-{split}"
            batches = self.dataset.batches(split)
            self._features[split] = self._cache.get(
                name, key, lambda: self._extract(split, batches), lambda: is_complete(batches)
            )
        return self._features[split]

    @property
    def has_features(self) -> bool:
        """Whether any evaluator has used the features."""
        return bool(self._features)

    def _extract(self, split: str, batches: pipeline.EvalDataset) -> VideoFeatures:
        start = time.perf_counter()
        found = features.extract(self.encoder, batches)
        seconds = time.perf_counter() - start
        print(
            f"{self.name}: extracted the features of {len(found.index_b)} {SPLITS[split]} videos "
            f"in {seconds:.0f} s",
            flush=True,
        )
        return found


def hash_videos(names: str, rules: AccessRules, seconds: float) -> str:
    """Returns a hash of the digests of all local files of manifests.

    Args:
      names: names of the manifests, separated by commas.
      rules: rules for which files the rows may refer to.
      seconds: time limit, see `fingerprints.digest_files`.
    """
    local = [name for name in manifest_lib.split_names(names) if not video_io.is_world(name)]
    paths = fingerprints.list_files(manifest_lib.read_manifest(local, rules)) if local else []
    digest = hashlib.sha256()
    with ProgressMeter(len(paths), "file", quiet=len(paths) < _METER_FILES) as meter:
        for number, found in enumerate(fingerprints.digest_files(paths, seconds), 1):
            digest.update(f"{found}\n".encode())
            meter.update(number, "hashed")
    return digest.hexdigest()


def is_complete(batches: pipeline.EvalDataset) -> bool:
    """Returns whether all videos were read, except those that will never be readable."""
    missing = batches.bad_videos.transient
    if missing:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in missing.items())
        print(
            f"{sum(missing.values())} videos could not be read now ({kinds}). The features are "
            "used but not cached. Repeat the command to read the videos again",
            flush=True,
        )
    return not missing


def load_videos(batches: Iterable[Mapping[str, Any]]) -> LabeledVideos:
    """Reads all batches into memory and removes padding."""
    videos, labels, index = [], [], []
    for batch in batches:
        real_b = np.asarray(batch["index"]) >= 0
        videos.append(np.asarray(batch["video"])[real_b])
        index.append(np.asarray(batch["index"])[real_b])
        labels.append({k: np.asarray(v)[real_b] for k, v in features.task_labels(batch).items()})
    joined = {task: np.concatenate([part[task] for part in labels]) for task in labels[0]}
    return LabeledVideos(np.concatenate(videos), joined, np.concatenate(index))
