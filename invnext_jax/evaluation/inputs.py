"""Inputs of the evaluators: an encoder, its features, and the training and held-out videos.

All inputs are read or computed when they are first used, so that unused inputs cost nothing.

Shape key: b videos, t frames, h w pixels, c channels.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from invnext_jax.checkpointing import run_metadata, video_digests
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, video_io
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.evaluation import nearest_neighbors
from invnext_jax.evaluation.clips_in_memory import ClipsInMemory, LabeledVideos, read_videos
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.dense.stored_truth import TruthInMemory
from invnext_jax.evaluation.feature_store.feature_cache import (
    FeatureCache,
    FeatureSource,
    feature_key,
)
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.evaluation.features import FeatureOptions, TokenStatistics, VideoFeatures
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.nearest_neighbors import NearestVideos
from invnext_jax.evaluation.truth.truth import Truth
from invnext_jax.json_file import hash_json
from invnext_jax.monitoring.progress import ProgressMeter

SPLITS = {"train": "training", "val": "held-out"}  # the values are used in messages
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
    """

    def __init__(self, config: Any, tasks: tuple[str, ...]):
        self.config = config
        self._videos: dict[str, tuple[LabeledVideos, pipeline.EvalDataset]] = {}
        self._truths: dict[tuple, Truth] = {}
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
        rules = AccessRules.from_config(data)
        return FeatureSource(
            rows=len(manifest_lib.read_manifest(self.manifests[split], rules)),
            clip_shape=(data.frames, data.size, data.size, 3),
            batch_size=self.videos_of_batch(views),
            make_batches=lambda rows, block: self.batches(
                split, views=views, rows=rows, block=block
            ),
        )

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
            )
            self._videos[split] = read_videos(dataset, f"{SPLITS[split]} videos read"), dataset
        return self._videos[split]

    def _clip_bytes(self, split: str) -> int:
        source = self.feature_source(split, 1)
        return source.rows * math.prod(source.clip_shape)

    def feature_key(self, split: str, encoder_key: str) -> str:
        """Returns the key for the features of a split; see `feature_cache.feature_key`."""
        data = run_metadata.config_to_json(self.config.data)
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
        dense: Collection[tuple[str, int]] = (),
    ):
        """Creates the inputs.

        Args:
          name: see above.
          dataset: see above.
          load: function that returns the encoder; it is called at most once.
          cache: the cache of the features.
          dense: splits and numbers of views for which an evaluator reads all tokens. Requests for
            pooled features also store them, so that the encoder runs only once.
        """
        self.name, self.dataset = name, dataset
        self._load, self._cache, self._dense = load, cache, frozenset(dense)
        self._features: dict[tuple[str, FeatureOptions], VideoFeatures] = {}
        self._nearest: NearestVideos | None = None

    @functools.cached_property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder with its parameters."""
        return self._load()

    def with_encoder(self, suffix: str, encoder: FrozenEncoder) -> "EvalInputs":
        """Returns inputs for an encoder that is derived from this one.

        Args:
          suffix: short name of the derived encoder, used in file names.
          encoder: the derived encoder.
        """
        return EvalInputs(f"{self.name}-{suffix}", self.dataset, lambda: encoder, self._cache)

    def with_dataset(self, dataset: EvaluationData) -> "EvalInputs":
        """Returns inputs with other videos and the same encoder, which is loaded only once.

        Their features need other names of files: see `with_encoder`.
        """
        return EvalInputs(self.name, dataset, lambda: self.encoder, self._cache)

    def features(
        self, split: str, *, layer: int | None = None, views: int = 1, dense: bool = False
    ) -> VideoFeatures:
        """Returns the features of a split, from the cache if possible.

        Args:
          split: "train" or "val".
          layer: see `FeatureOptions`.
          views: see `FeatureOptions`.
          dense: whether to also return all tokens. Tokens larger than `config.features.max_gb` are
            an error; call `fits_dense` to check their size first.
        """
        moments = layer is None and split == "val"
        dtype = self.dataset.config.features.dtype
        wanted = FeatureOptions(layer, views, dense, moments, dtype)
        if (split, wanted) not in self._features:
            source = self.dataset.feature_source(split, views)
            options = dataclasses.replace(wanted, dense=True)
            is_shared = layer is None and (split, views) in self._dense
            if not dense and not (is_shared and self._cache.fits(self.encoder, source, options)):
                options = wanted
            if (split, options) not in self._features:
                key = self.dataset.feature_key(split, self.encoder.key)
                name = _folder_name(f"{self.name}-{split}", options)
                found = self._cache.get(name, key, self.encoder, source, options)
                self._features[split, options] = found
            self._features[split, wanted] = self._features[split, options]
        return self._features[split, wanted]

    def fits_dense(self, *, layer: int | None = None, views: int = 1) -> bool:
        """Returns whether the tokens of both splits fit into `config.features.max_gb`."""
        options = FeatureOptions(layer, views, True, False, self.dataset.config.features.dtype)
        sources = (self.dataset.feature_source(split, views) for split in SPLITS)
        return all(self._cache.fits(self.encoder, source, options) for source in sources)

    def state_file(
        self, name: str, *parts: Any, splits: Sequence[str] = tuple(SPLITS)
    ) -> StateFile:
        """Returns the file that stores the state of a head during training on this encoder.

        Args:
          name: short name of the training, unique for each head.
          *parts: JSON-serializable values that the result depends on, in addition to the encoder,
            the videos and the seed.
          splits: splits on whose videos the result depends.
        """
        keys = [self.dataset.feature_key(split, self.encoder.key) for split in splits]
        key = hash_json([keys, self.dataset.config.seed, *parts])
        return StateFile(self._cache.folder.parent / "heads" / f"{self.name}-{name}.npz", key)

    def find_nearest_videos(self) -> NearestVideos | None:
        """Finds the nearest training videos by the mean token; None if no features are pooled."""
        pooled = {
            split: part
            for (split, options), part in self._features.items()
            if options.layer is None
        }
        if set(pooled) != set(SPLITS):
            return None
        if self._nearest is None:
            self._nearest = nearest_neighbors.find_nearest_videos(pooled["train"], pooled["val"])
        return self._nearest

    @property
    def token_statistics(self) -> TokenStatistics | None:
        """Statistics of the final tokens of the held-out videos; None if no evaluator used them."""
        for found in self._features.values():
            if found.second_dd is not None:
                return found.tokens
        return None


def _folder_name(name: str, options: FeatureOptions) -> str:
    """Returns the name of the cache folder of features with these options."""
    layer = "" if options.layer is None else f"-layer{options.layer}"
    views = "" if options.views == 1 else f"-{options.views}views"
    return f"{name}{layer}{views}{'-tokens' if options.dense else ''}"


def hash_videos(names: str, rules: AccessRules, seconds: float) -> str:
    """Returns a hash of the contents of all local files that manifests refer to.

    Args:
      names: names of the manifests, separated by commas.
      rules: which files the rows may refer to.
      seconds: time limit, see `video_digests.digest_files`.
    """
    local = [name for name in manifest_lib.split_names(names) if not video_io.is_world(name)]
    paths = video_digests.list_files(manifest_lib.read_manifest(local, rules)) if local else []
    digest = hashlib.sha256()
    with ProgressMeter(len(paths), "file", quiet=len(paths) < _METER_FILES) as meter:
        for number, found in enumerate(video_digests.digest_files(paths, seconds), 1):
            digest.update(f"{found}\n".encode())
            meter.update(number, "hashed")
    return digest.hexdigest()
