"""Scores of features without training: nearest neighbors (leave-one-out) and the effective rank.

Shape key: b clips of a batch, n clips, c classes, d width, k neighbors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from invnext_jax.objectives.losses import rank_of_spectrum

TEMPERATURE = 0.07  # equal to the default of `config.knn`
RANK = "feature_rank"


def score_tasks(
    parts: Sequence[tuple[jax.Array, jax.Array]],
    labels: Mapping[str, jax.Array],
    *,
    classes: Mapping[str, int],
    neighbors: int,
) -> dict[str, jax.Array]:
    """Computes the leave-one-out accuracy of weighted nearest neighbors for each task.

    Args:
      parts: batches of clips: L2-normalized features, float32 [b d], and whether they are valid,
        bool [b]. Invalid clips are neither classified nor used as neighbors. Clips after the first
        n are padding.
      labels: int32 [n] by task; a negative number means no label.
      classes: number of classes of each task.
      neighbors: number of neighbors k that vote; fewer if there are fewer other clips.

    Returns:
      float32 accuracy of each task, NaN if there is no clip to classify, and `RANK`, the effective
      rank of the features of the valid clips.
    """
    n = len(next(iter(labels.values())))
    x_nd, valid_n = (jnp.concatenate(part)[:n] for part in zip(*parts, strict=True))
    similarity_nn = jnp.einsum("nd,md->nm", x_nd, x_nd, precision=jax.lax.Precision.HIGHEST)
    self_nn = jnp.eye(n, dtype=bool)
    accuracies = {}
    for task, label_n in labels.items():
        known_n = valid_n & (label_n >= 0)
        allowed_nn = known_n[None] & ~self_nn
        masked_nn = jnp.where(allowed_nn, similarity_nn, -jnp.inf)
        top_nk, index_nk = jax.lax.top_k(masked_nn, min(neighbors, n - 1))
        weight_nk = jnp.exp((top_nk - top_nk[:, :1]) / TEMPERATURE)
        weight_nk = jnp.where(jnp.isfinite(top_nk), weight_nk, 0.0)
        votes_nkc = jax.nn.one_hot(label_n[index_nk], classes[task]) * weight_nk[..., None]
        correct_n = jnp.argmax(jnp.sum(votes_nkc, axis=1), axis=1) == label_n
        correct_n &= jnp.isfinite(top_nk[:, 0])
        accuracies[task] = jnp.sum(correct_n & known_n) / jnp.sum(known_n)
    return accuracies | {RANK: _rank(x_nd, valid_n)}


def _rank(x_nd: jax.Array, valid_n: jax.Array) -> jax.Array:
    """Returns the effective rank of the valid features."""
    valid_n1 = valid_n[:, None].astype(x_nd.dtype)
    mean_1d = jnp.sum(x_nd * valid_n1, axis=0, keepdims=True) / jnp.sum(valid_n1)
    x_nd = (x_nd - mean_1d) * valid_n1
    # Its non-zero eigenvalues are those of the covariance matrix, up to a factor.
    gram_nn = jnp.einsum("nd,md->nm", x_nd, x_nd, precision=jax.lax.Precision.HIGHEST)
    return rank_of_spectrum(jnp.linalg.eigvalsh(gram_nn))


def describe_neighbors(neighbors: int, labels: Mapping[str, Any]) -> str:
    """Returns a note if a task has fewer other clips than `config.eval.neighbors`, or "".

    Args:
      neighbors: number of neighbors that should vote.
      labels: labels of the clips by task, int [n]; negative for none.
    """
    others = {task: int((label_n >= 0).sum()) - 1 for task, label_n in labels.items()}
    fewer = [f"{count} for {task}" for task, count in others.items() if count < neighbors]
    if not fewer:
        return ""
    return (
        f"note: config.eval.neighbors={neighbors} is more than the number of other labeled videos "
        f"({', '.join(fewer)}), so all of them vote"
    )
