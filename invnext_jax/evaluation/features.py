"""Features of a frozen encoder: pooled tokens of a manifest's videos, and token statistics.

Shape key: b videos, t time slots, h w pixels, c channels, s patches of a slot, n grid tokens,
d width.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.objectives import losses

POOLINGS = ("mean", "frames")


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
class VideoFeatures:
    """Features and labels of all readable videos of a manifest, in manifest order.

    Attributes:
      frames_btd: float32 mean of the grid tokens of each time slot.
      labels: int32 labels [b] of each task.
      index_b: int32 row numbers in the manifest, without unreadable videos.
      sum_nd: float64 sum over videos of the tokens at each position.
      second_dd: float64 sum over videos and positions of the outer product of each token with
        itself.
    """

    frames_btd: np.ndarray
    labels: dict[str, np.ndarray]
    index_b: np.ndarray
    sum_nd: np.ndarray
    second_dd: np.ndarray

    def pooled(self, pooling: str) -> np.ndarray:
        """Returns float32 features: [b d] for pooling "mean", [b, t*d] for "frames"."""
        if pooling == "mean":
            return self.frames_btd.mean(axis=1)
        return rearrange(self.frames_btd, "b t d -> b (t d)")

    @property
    def tokens(self) -> TokenStatistics:
        """The statistics of the grid tokens."""
        return token_statistics(self.sum_nd, self.second_dd, len(self.index_b))


def extract(encoder: FrozenEncoder, batches: Iterable[Mapping[str, Any]]) -> VideoFeatures:
    """Runs the frozen encoder on all batches of a manifest.

    Args:
      encoder: the encoder.
      batches: batches of the evaluation pipeline, all of the same size so that the encoder is
        compiled once. Rows with index -1 are padding.
    """

    @jax.jit
    def run(params, video_bthwc, real_b):
        tokens_btsd = encoder.apply(params, video_bthwc).tokens_btnd
        frames_btd = jnp.mean(tokens_btsd, axis=2)
        tokens_bnd = rearrange(tokens_btsd, "b t s d -> b (t s) d")
        real_tokens = jnp.where(real_b[:, None, None], tokens_bnd, 0.0)
        highest = jax.lax.Precision.HIGHEST
        second_dd = jnp.einsum("bnd,bne->de", real_tokens, real_tokens, precision=highest)
        return frames_btd, jnp.sum(real_tokens, axis=0), second_dd

    params = jax.device_put(encoder.params)
    frames, labels, index, moments = [], [], [], None
    for batch in batches:
        real_b = batch["index"] >= 0
        frames_btd, *sums = jax.device_get(run(params, batch["video"], real_b))
        sums = [np.asarray(part, np.float64) for part in sums]
        moments = sums if moments is None else [a + b for a, b in zip(moments, sums, strict=True)]
        frames.append(frames_btd[real_b])
        index.append(np.asarray(batch["index"])[real_b])
        labels.append({k: np.asarray(v)[real_b] for k, v in task_labels(batch).items()})
    sum_nd, second_dd = moments
    return VideoFeatures(
        frames_btd=np.concatenate(frames),
        labels={task: np.concatenate([part[task] for part in labels]) for task in labels[0]},
        index_b=np.concatenate(index),
        sum_nd=sum_nd,
        second_dd=second_dd,
    )


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
