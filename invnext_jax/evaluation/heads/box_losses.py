"""Losses of the tracking heads: smooth L1 and generalized IoU.

Boxes are (x0, y0, x1, y1), usually in [0, 1]. The paper does not state its loss. 4DS (arXiv
2412.15212) uses an L1 loss for boxes; the sum of both losses is common in object detection.

Shape key: any leading axes, 4 = (x0, y0, x1, y1).
"""

import jax
import jax.numpy as jnp

from invnext_jax.objectives.losses import masked_mean


def smooth_l1(predicted: jax.Array, target: jax.Array, beta: float = 0.1) -> jax.Array:
    """Returns 0.5 d^2 / beta where d = |predicted - target| is below `beta`, else d - 0.5 beta.

    Args:
      predicted: float32 values.
      target: float32 values of the same shape.
      beta: width of the quadratic part. PyTorch's default of 1 would be purely quadratic for
        coordinates in [0, 1].

    Returns:
      float32 of the same shape.
    """
    distance = jnp.abs(predicted - target)
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the generalized IoU of boxes (arXiv 1902.09630), from -1 to 1.

    If the corners of a predicted box are in the wrong order, its width or height counts as 0. For
    two boxes of area 0, the result and its gradient are finite.

    Args:
      a: float32 [... 4].
      b: float32 [... 4].

    Returns:
      float32 [...].
    """
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    overlap = _area(low, high)
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    hull_low = jnp.minimum(jnp.minimum(a[..., :2], b[..., :2]), a[..., 2:])
    hull_high = jnp.maximum(jnp.maximum(a[..., 2:], b[..., 2:]), a[..., :2])
    hull = _area(hull_low, hull_high)
    return _divide(overlap, union) - _divide(hull - union, hull)


def box_loss(
    predicted: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    *,
    l1_weight: float = 1.0,
    giou_weight: float = 0.5,
    beta: float = 0.1,
) -> jax.Array:
    """Computes the mean of l1_weight * smooth L1 + giou_weight * (1 - GIoU) over visible boxes.

    Args:
      predicted: float32 [... 4].
      target: float32 [... 4]; boxes outside the mask may have any finite values.
      mask: bool [...], True where a box is visible.
      l1_weight: weight of the smooth L1 loss, which is the mean over the four corners.
      giou_weight: weight of the GIoU loss.
      beta: see `smooth_l1`.

    Returns:
      A float32 scalar; 0 if no box is visible.
    """
    l1 = jnp.mean(smooth_l1(predicted, target, beta), axis=-1)
    loss = l1_weight * l1 + giou_weight * (1.0 - generalized_iou(predicted, target))
    return masked_mean(loss, mask)


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    size = jnp.maximum(high - low, 0.0)
    return size[..., 0] * size[..., 1]


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns the quotient, or 0 where the denominator is 0."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)
