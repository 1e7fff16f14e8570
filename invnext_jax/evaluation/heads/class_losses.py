"""Losses of classifiers: cross-entropy with labels or soft targets, and the sigmoid focal loss.

Shape key: b clips, k classes.
"""

import jax
import jax.numpy as jnp
import optax

from invnext_jax.objectives.losses import masked_mean


def soft_targets(label_b: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Returns one-hot targets with label smoothing.

    Args:
      label_b: int32 labels. A negative label means "no label" and results in a row of zeros.
      classes: number of classes k.
      smoothing: fraction of each target that is spread evenly over all classes, from 0 to 1.

    Returns:
      float32 [b k].
    """
    one_hot_bk = jax.nn.one_hot(label_b, classes, dtype=jnp.float32)
    target_bk = (1.0 - smoothing) * one_hot_bk + smoothing / classes
    return jnp.where((label_b >= 0)[:, None], target_bk, 0.0)


def cross_entropy(logits_bk: jax.Array, label_b: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy of the clips with a label.

    Args:
      logits_bk: float32 logits.
      label_b: int32 labels. A negative label means "no label".

    Returns:
      A float32 scalar; 0 if no clip has a label.
    """
    has_b = label_b >= 0
    entropy_b = optax.softmax_cross_entropy_with_integer_labels(
        logits_bk, jnp.where(has_b, label_b, 0)
    )
    return masked_mean(entropy_b, has_b)


def soft_cross_entropy(logits_bk: jax.Array, target_bk: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy of the clips with a label.

    Args:
      logits_bk: float32 logits.
      target_bk: float32 class probabilities; a row of zeros is a clip without a label.

    Returns:
      A float32 scalar; 0 if no clip has a label.
    """
    loss_b = -jnp.sum(target_bk * jax.nn.log_softmax(logits_bk), axis=-1)
    return jnp.sum(loss_b) / jnp.maximum(jnp.sum(target_bk), 1e-6)


def sigmoid_focal_loss(
    logits_bk: jax.Array, target_bk: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Computes the summed sigmoid focal loss of independent classes (arXiv 1708.02002, equation 5).

    V-JEPA 2 trains its action anticipation probe with this loss.

    Args:
      logits_bk: float32 logits.
      target_bk: float32 targets in [0, 1]. A row of zeros is a clip without any of the classes; it
        contributes to the loss.
      alpha: weight of positive targets; negative targets have the weight 1 - alpha. If `alpha` is
        negative, all weights are 1.
      gamma: focusing exponent, which reduces the loss of classes that are predicted well.

    Returns:
      A float32 scalar, the sum over clips and classes.
    """
    p_bk = jax.nn.sigmoid(logits_bk)
    entropy_bk = -(
        target_bk * jax.nn.log_sigmoid(logits_bk)
        + (1.0 - target_bk) * jax.nn.log_sigmoid(-logits_bk)
    )
    wrong_bk = p_bk * (1.0 - target_bk) + (1.0 - p_bk) * target_bk
    loss_bk = entropy_bk * wrong_bk**gamma
    if alpha >= 0:
        loss_bk = loss_bk * (alpha * target_bk + (1.0 - alpha) * (1.0 - target_bk))
    return jnp.sum(loss_bk)
