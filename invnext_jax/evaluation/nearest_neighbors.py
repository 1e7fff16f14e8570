"""Weighted k-nearest-neighbor classification and retrieval with cosine similarity.

The classifier is that of DINO (arXiv 2104.14294): each of the k nearest training videos votes for
its class with the weight exp(similarity / temperature).

Shape key: b queries, n training videos, d features, k neighbors, c classes, s numbers of neighbors.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax import regular_file
from invnext_jax.evaluation.feature_store import npz_file
from invnext_jax.evaluation.features import VideoFeatures

CHUNK = 2**25  # number of similarities that are computed at once
MAX_QUERIES, NEIGHBORS = 256, 5  # of a file of neighbors, which a comparison of encoders shows
MAX_BYTES = 2**24
BLOCK = 4096  # videos whose features are read at once


class NearestVideos(NamedTuple):
    """The nearest training videos of some held-out videos.

    Attributes:
      index_b: int rows of the held-out videos in their manifest.
      neighbor_bk: int rows of the training videos in their manifest, nearest first.
      similarity_bk: float cosine similarities.
    """

    index_b: np.ndarray
    neighbor_bk: np.ndarray
    similarity_bk: np.ndarray


def l2_normalize(x_bd: np.ndarray, eps: float = 1e-12) -> np.ndarray:
    """Scales feature vectors [b d] to unit L2 norm, float32; zero vectors stay zero."""
    x_bd = np.asarray(x_bd, np.float32)
    return x_bd / np.maximum(np.linalg.norm(x_bd, axis=-1, keepdims=True), eps)


def find_neighbors(query_bd: np.ndarray, train_nd: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Finds the nearest training videos of each query. The result does not depend on `CHUNK`.

    Args:
      query_bd: L2-normalized features of the queries, float.
      train_nd: L2-normalized features of the training videos, float.
      k: number of neighbors, at most n.

    Returns:
      Cosine similarities float32 [b k] in descending order, and positions int32 [b k] in
      `train_nd`. Of equally similar videos, the one with the lower position comes first.
    """
    train_nd = jax.device_put(np.asarray(train_nd, np.float32))
    chunk = min(max(1, CHUNK // len(train_nd)), len(query_bd))
    found = []
    for start in range(0, len(query_bd), chunk):
        part_bd = np.zeros((chunk, query_bd.shape[1]), np.float32)
        real_bd = query_bd[start : start + chunk]
        part_bd[: len(real_bd)] = real_bd
        values = jax.device_get(_top_k(part_bd, train_nd, k))
        found.append([value_bk[: len(real_bd)] for value_bk in values])
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


@functools.partial(jax.jit, static_argnames="k")
def _top_k(query_bd: jax.Array, train_nd: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    highest = jax.lax.Precision.HIGHEST
    similarity_bn = jnp.einsum("bd,nd->bn", query_bd, train_nd, precision=highest)
    return jax.lax.top_k(similarity_bn, k)


def vote(
    similarity_bk: np.ndarray,
    neighbor_bk: np.ndarray,
    labels_n: np.ndarray,
    *,
    neighbors: Sequence[int],
    temperature: float,
    classes: int,
) -> np.ndarray:
    """Computes the votes of the nearest neighbors for each class.

    Args:
      similarity_bk: see `find_neighbors`.
      neighbor_bk: see `find_neighbors`.
      labels_n: int class of each training video, from 0 to c - 1.
      neighbors: the s numbers of neighbors that vote, each at most k.
      temperature: positive temperature of the weights.
      classes: number of classes c.

    Returns:
      float32 [s b c]; the votes of a query add up to 1. The predicted class is that with the most
      votes.
    """
    label_bk = labels_n[neighbor_bk]
    votes = []
    for k in neighbors:
        logits_bk = np.asarray(similarity_bk[:, :k], np.float64) / temperature
        weight_bk = np.exp(logits_bk - logits_bk.max(axis=1, keepdims=True))
        weight_bk /= weight_bk.sum(axis=1, keepdims=True)
        votes_bc = np.zeros((len(label_bk), classes))
        np.add.at(votes_bc, (np.arange(len(label_bk))[:, None], label_bk[:, :k]), weight_bk)
        votes.append(votes_bc.astype(np.float32))
    return np.stack(votes)


def find_nearest_videos(train: VideoFeatures, val: VideoFeatures) -> NearestVideos:
    """Finds the nearest training videos of at most `MAX_QUERIES` evenly spaced held-out videos.

    Videos are compared by their mean token.

    Args:
      train: pooled features of the training videos.
      val: pooled features of the held-out videos.
    """
    blocks = np.array_split(np.arange(len(train)), -(-len(train) // BLOCK))
    train_nd = np.concatenate([l2_normalize(train.pooled("mean", rows_b)) for rows_b in blocks])
    count = min(MAX_QUERIES, len(val))
    chosen_b = np.linspace(0, len(val) - 1, count).round().astype(int)
    query_bd = l2_normalize(val.pooled("mean", chosen_b))
    found = find_neighbors(query_bd, train_nd, min(NEIGHBORS, len(train)))
    return NearestVideos(val.index_b[chosen_b], train.index_b[found[1]], found[0])


def write_nearest_videos(path: str | Path, found: NearestVideos) -> None:
    """Writes a file of neighbors atomically."""
    npz_file.write_arrays(path, **found._asdict())


def read_nearest_videos(path: str | Path) -> NearestVideos | None:
    """Reads a file of neighbors; None if it is missing or damaged."""
    try:
        with npz_file.open_arrays(path, MAX_BYTES) as archive:
            found = NearestVideos(*(archive[name] for name in NearestVideos._fields))
        return found if _is_valid(found) else None
    except regular_file.DAMAGE:
        return None


def _is_valid(found: NearestVideos) -> bool:
    rows = found.index_b, found.neighbor_bk
    shape = found.neighbor_bk.shape
    return (
        all(part.dtype.kind == "i" and part.size and part.min() >= 0 for part in rows)
        and found.similarity_bk.dtype.kind == "f"
        and (found.index_b.ndim, len(shape)) == (1, 2)
        and found.similarity_bk.shape == shape
        and len(found.index_b) == shape[0]
    )
