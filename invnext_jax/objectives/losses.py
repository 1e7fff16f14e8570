"""Cosine loss, masked means, gradient norms, and diagnostics of features.

Shape key: b clips, n positions, d width; other axes are free.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def cosine_loss(
    student: jax.Array, target: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Computes the mean squared distance between unit vectors: 2 - 2 cos(angle).

    Args:
      student: float32 [... d], unit vectors.
      target: float32 of the same shape. It is not normalized, so its length scales the cosine.
      weights: float32 factors of the distances before the mean, which is not divided by their sum;
        None for factors of 1.
    """
    distances = 2.0 - 2.0 * jnp.sum(student * target, axis=-1)
    return jnp.mean(distances if weights is None else weights * distances)


def masked_mean(values: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Computes the mean of the values in a mask, or 0 if the mask is empty.

    Args:
      values: float32. Values outside the mask may be NaN.
      mask: bool of the same shape.
      axis: axis that is averaged and keeps the size 1. None averages all values to a scalar.
    """
    keepdims = axis is not None
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis, keepdims=keepdims)
    return total / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=keepdims), 1)


def tree_norm(tree: Any) -> jax.Array:
    """Returns the global Euclidean norm of all leaves of a tree."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def gradient_norms(
    terms_fn: Callable[[Any], dict[str, jax.Array]], params: Any
) -> dict[str, jax.Array]:
    """Computes the gradient norm of each loss term.

    The forward pass runs once, and one compiled backward pass is mapped over the terms.

    Args:
      terms_fn: function of `params` that returns a dict of scalar loss terms.
      params: parameters at which the gradients are taken.
    """
    names = sorted(jax.eval_shape(terms_fn, params))

    def stacked(params):
        terms = terms_fn(params)
        return jnp.stack([terms[name] for name in names])

    _, vjp_fn = jax.vjp(stacked, params)
    norms = jax.lax.map(lambda row: tree_norm(vjp_fn(row)[0]), jnp.eye(len(names)))
    return dict(zip(names, norms, strict=True))


def position_share(x_bnd: jax.Array) -> jax.Array:
    """Returns the fraction of the variance (0 to 1) that is explained by the position alone.

    Args:
      x_bnd: float32 features of b clips at the same n positions.
    """
    total = jnp.sum(jnp.var(x_bnd, axis=(0, 1)))
    within = jnp.sum(jnp.mean(jnp.var(x_bnd, axis=0), axis=0))
    return explained_share(within, total)


def explained_share(within: Any, total: Any) -> Any:
    """Returns the fraction of the variance that is between groups, 1 - within / total."""
    return 1.0 - within / (total + 1e-30)


def feature_std(x: jax.Array) -> jax.Array:
    """Returns the channels' mean standard deviation over all vectors; 0 means collapse."""
    return jnp.mean(jnp.std(x.reshape(-1, x.shape[-1]), axis=0))


def effective_rank(x: jax.Array) -> jax.Array:
    """Returns the effective rank (1 to d): exp of the entropy of the covariance eigenvalues.

    Args:
      x: float32 [... d].
    """
    x = x.reshape(-1, x.shape[-1])
    x = x - jnp.mean(x, axis=0, keepdims=True)
    covariance_dd = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return rank_of_spectrum(jnp.linalg.eigvalsh(covariance_dd))


def rank_of_spectrum(spectrum_d: Any) -> Any:
    """Returns the effective rank (1 to d): exp of the entropy of the normalized eigenvalues.

    Args:
      spectrum_d: covariance eigenvalues, as a NumPy or JAX array. The result has its type.
    """
    xp = spectrum_d.__array_namespace__()
    spectrum_d = xp.clip(spectrum_d, 0.0, None)
    p = spectrum_d / (xp.sum(spectrum_d) + 1e-30)
    return xp.exp(-xp.sum(p * xp.log(p + 1e-30)))
