"""Inputs of the evaluators: an encoder, its features, and the training and held-out videos.

All inputs are read or computed when they are first used, so that unused inputs cost nothing.

Shape key: b videos, t frames, h w pixels, c channels.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from invnext_jax.evaluation import nearest_neighbors
from invnext_jax.evaluation.evaluation_data import SPLITS, EvaluationData
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.evaluation.features import FeatureOptions, TokenStatistics, VideoFeatures
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.nearest_neighbors import NearestVideos
from invnext_jax.json_file import hash_json
from invnext_jax.multihost.distributed import log_on_process_0


class Notes:
    """Sentences about the data of an evaluation. Each of them is printed once."""

    def __init__(self):
        self._texts: dict[str, None] = {}
        self._printed: set[str] = set()

    def add(self, text: str) -> None:
        """Prints a note and stores it for `pop_all`."""
        if text not in self._printed:
            log_on_process_0(f"note: {text}")
            self._printed.add(text)
        self._texts[text] = None

    def pop_all(self) -> list[str]:
        """Returns the notes that were added since the last call."""
        texts, self._texts = list(self._texts), {}
        return texts


class EvalInputs:
    """Inputs of an evaluator: an encoder, its features, and the videos of both splits.

    Attributes:
      name: name of the evaluated encoder in the rows: "encoder" or "random".
      dataset: videos, labels and batches of both splits.
      notes: notes for the results. Inputs that are derived from others share them.
    """

    def __init__(
        self,
        name: str,
        dataset: EvaluationData,
        load: Callable[[], FrozenEncoder],
        cache: FeatureCache,
        dense: Collection[tuple[str, int]] = (),
        notes: Notes | None = None,
    ):
        """Creates the inputs.

        Args:
          name: see above.
          dataset: see above.
          load: function that returns the encoder; it is called at most once.
          cache: the cache of the features.
          dense: splits and numbers of views for which an evaluator reads all tokens. Requests for
            pooled features also store them, so that the encoder runs only once.
          notes: see above.
        """
        self.name, self.dataset, self.notes = name, dataset, notes or Notes()
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
        name = f"{self.name}-{suffix}"
        return EvalInputs(name, self.dataset, lambda: encoder, self._cache, notes=self.notes)

    def with_dataset(self, dataset: EvaluationData) -> "EvalInputs":
        """Returns inputs with other videos and the same encoder, which is loaded only once.

        Their features need other names of files: see `with_encoder`.
        """
        return EvalInputs(self.name, dataset, lambda: self.encoder, self._cache, notes=self.notes)

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
                missing = set(range(source.rows)) - set(found.index_b.tolist())
                self.dataset.unreadable[split] |= missing
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
            the videos, the dtype of stored features and the seed.
          splits: splits on whose videos the result depends.
        """
        keys = [self.dataset.feature_key(split, self.encoder.key) for split in splits]
        config = self.dataset.config
        key = hash_json([keys, config.features.dtype, config.seed, *parts])
        return StateFile(self._cache.folder.parent / "heads" / f"{self.name}-{name}.npz", key)

    def note_large_batch(self, section: str, settings: Any, videos: int) -> None:
        """Adds a note if the batches of a head have more videos than are trained on.

        Args:
          section: name of the section of the config.
          settings: the section, with `batch_size` and `epochs`.
          videos: number of videos that are trained on.
        """
        size = settings.batch_size
        if size > videos:
            steps = max(1, round(settings.epochs * videos / size))
            self.notes.add(
                f"{section}: a batch has {size:,} videos, but only {videos:,} are trained on, so "
                f"the head is trained for {steps:,} {'step' if steps == 1 else 'steps'} only: "
                f"lower config.{section}.batch_size."
            )

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
