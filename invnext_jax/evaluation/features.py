"""Features of a frozen encoder: pooled tokens of a manifest's videos, and token statistics.

Shape key: b videos or clips, v views of a video, t time slots, h w pixels, c channels, s patches of
a slot, n grid tokens, k class tokens, d width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.data.pipeline import CROP_POSITIONS, check_clip_options
from invnext_jax.errors import UserError
from invnext_jax.evaluation.feature_store.chunked_array import ChunkedArray
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.models import heads
from invnext_jax.objectives import losses

_KINDS = {"mean": "frames", "frames": "frames", "pool": "pool", "class": "class"}
DTYPES = ("float32", "float16")
POOLINGS = tuple(_KINDS)  # see `VideoFeatures.arrays`


@dataclasses.dataclass(frozen=True)
class TokenStatistics:
    """Statistics of the grid tokens of many videos.

    Attributes:
      position_share: fraction of the variance that is explained by the mean token of each position.
      effective_rank: exponential of the entropy of the covariance eigenvalues, from 1 to d.
      effective_rank_within: effective rank after subtracting the mean token of each position.
      feature_std: standard deviation over all tokens, averaged over channels.
      width: width d of the tokens.
    """

    position_share: float
    effective_rank: float
    effective_rank_within: float
    feature_std: float
    width: int


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """Which features are extracted from each clip.

    Attributes:
      layer: layer whose tokens are used, from 0; None for the final tokens.
      views: number of crops of each video, 1 or 3; see `pipeline.make_eval_dataset`.
      dense: whether to store all tokens in addition to the pooled features.
      moments: whether to sum the moments of the tokens for `TokenStatistics`.
      dtype: dtype of the stored features, "float32" or "float16".
    """

    layer: int | None = None
    views: int = 1
    dense: bool = False
    moments: bool = False
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class VideoFeatures:
    """Features and labels of all readable videos of a manifest, in manifest order.

    Attributes:
      arrays: features by kind, each with the axes [b v ...] for videos and views:
        "frames" [b v t d], the mean of the tokens of each time slot; "pool" [b v d], the pooled
        output of the encoder, if it has one; "class" [b v k d], its class tokens, if it has any;
        and, with `FeatureOptions.dense`, "tokens" [b v t s d].
      labels: int32 labels [b] of each task.
      index_b: int32 row numbers in the manifest, without unreadable videos.
      sum_nd: float64 sum over clips of the tokens at each position; None without moments.
      second_dd: float64 sum over clips and positions of the outer product of each token with
        itself; None without moments.
    """

    arrays: Mapping[str, ChunkedArray]
    labels: dict[str, np.ndarray]
    index_b: np.ndarray
    sum_nd: np.ndarray | None
    second_dd: np.ndarray | None

    def __len__(self) -> int:
        return len(self.index_b)

    @property
    def views(self) -> int:
        """Number of views of each video."""
        return next(iter(self.arrays.values())).shape[1]

    def has_pooling(self, pooling: str) -> bool:
        """Returns whether the encoder has the output that a pooling of `POOLINGS` needs."""
        return _KINDS[pooling] in self.arrays

    def width(self, pooling: str) -> int:
        """Returns the number of features of a pooling."""
        shape = self.arrays[_KINDS[pooling]].shape
        return shape[-1] if pooling == "mean" else int(np.prod(shape[2:]))

    def pooled_views(self, pooling: str, rows_b: np.ndarray | None = None) -> np.ndarray:
        """Reads pooled features of every view, float32 [b v d].

        Args:
          pooling: one of `POOLINGS`.
          rows_b: rows of the features to read, from 0; None for all.
        """
        array = self.arrays[_KINDS[pooling]]
        x = array.read() if rows_b is None else array.take(rows_b)
        if pooling == "mean":
            return np.mean(x, axis=2, dtype=np.float32)
        return x.reshape(*x.shape[:2], -1).astype(np.float32, copy=False)

    def pooled(self, pooling: str, rows_b: np.ndarray | None = None) -> np.ndarray:
        """Reads pooled features of the middle view, float32 [b d]. See `pooled_views`."""
        return self.pooled_views(pooling, rows_b)[:, self.views // 2]

    @property
    def tokens(self) -> TokenStatistics:
        """The statistics of the grid tokens."""
        return token_statistics(self.sum_nd, self.second_dd, self.views * len(self))


def check_config(config: Any) -> None:
    """Checks `config.features` and the options of `config.data` for clips.

    Raises:
      UserError: the size is not positive, the dtype or the number of views is unknown, or an option
        for clips is invalid.
    """
    check_clip_options(config.data)
    settings = config.features
    if settings.max_gb <= 0:
        raise UserError(f"config.features.max_gb={settings.max_gb} must be positive")
    if settings.dtype not in DTYPES:
        raise UserError(f"config.features.dtype={settings.dtype!r} must be one of {DTYPES}")
    if settings.views not in CROP_POSITIONS:
        raise UserError(f"config.features.views={settings.views} must be 1 or 3")


def describe_poolings(encoder: FrozenEncoder, poolings: Sequence[str]) -> list[str]:
    """Returns notes about poolings that the encoder does not have or that were not trained."""
    notes = [
        f"The encoder has no features {name!r} of config.poolings."
        for name, exists in (("pool", encoder.pool_width), ("class", encoder.class_tokens))
        if name in poolings and not exists
    ]
    if "pool" in poolings and encoder.pool_width and encoder.loaded:
        if heads.is_untrained_pool(encoder.loaded.pool):
            notes.append(f"The rows of the pool are not meaningful: {heads.UNTRAINED_POOL}.")
    return notes


def task_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the labels of a batch by task; the key "label_shape" becomes "shape"."""
    return {k.removeprefix("label_"): v for k, v in batch.items() if k.startswith("label_")}


def token_statistics(sum_nd: np.ndarray, second_dd: np.ndarray, videos: int) -> TokenStatistics:
    """Computes the statistics of tokens [videos, n, d] from their moments.

    Args:
      sum_nd: see `VideoFeatures`.
      second_dd: see `VideoFeatures`.
      videos: number of videos.
    """
    n, d = sum_nd.shape
    mean_nd = sum_nd / videos
    mean_d = mean_nd.mean(axis=0)
    offset_nd = mean_nd - mean_d[None]
    total_dd = second_dd / (videos * n) - np.outer(mean_d, mean_d)
    within_dd = total_dd - offset_nd.T @ offset_nd / n
    total = np.trace(total_dd)
    share = losses.explained_share(np.trace(within_dd), total) if total > 0 else 0.0
    return TokenStatistics(
        position_share=float(share),
        effective_rank=effective_rank(total_dd),
        effective_rank_within=effective_rank(within_dd),
        feature_std=float(np.mean(np.sqrt(np.clip(np.diag(total_dd), 0, None)))),
        width=d,
    )


def effective_rank(covariance_dd: np.ndarray) -> float:
    """Computes the effective rank of a covariance in float64: 1 for rank one, d for the identity.

    A covariance of zeros has effective rank 0.
    """
    spectrum_d = np.linalg.eigvalsh(covariance_dd)
    return float(losses.rank_of_spectrum(spectrum_d)) if (spectrum_d > 0).any() else 0.0
