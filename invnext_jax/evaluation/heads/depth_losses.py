"""Losses of the depth heads, with a mask of valid pixels.

The paper does not state its loss. `l2_loss` on depth in meters is the default of this package.
`video_depth_loss` is the loss of Video-Depth-Anything (arXiv 2501.12375, section 3.2): a spatial
loss that is invariant to scale and shift, and a loss on changes over time.

Shape key: b clips, t frames, h w pixels, i images, m pixels of a clip.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.objectives.losses import masked_mean

SMALL = 1e-6  # lower bound of denominators


def l2_loss(depth: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the mean squared error of the valid pixels.

    Args:
      depth: float32 predictions.
      target: float32 of the same shape. Invalid pixels may have any value.
      mask: bool of the same shape, True where the target is valid.

    Returns:
      A float32 scalar; 0 if no pixel is valid. This holds for all losses of this module.
    """
    return masked_mean(jnp.square(depth - jnp.where(mask, target, 0.0)), mask)


def silog_loss(
    depth: jax.Array, target: jax.Array, mask: jax.Array, *, variance_focus: float = 0.5
) -> jax.Array:
    """Computes the scale-invariant log loss of all valid pixels (arXiv 1406.2283, equation 4).

    Args:
      depth: float32 predictions; values below 1e-3 count as 1e-3.
      target: float32 of the same shape, positive where it is valid.
      mask: bool of the same shape.
      variance_focus: fraction of the squared mean that is subtracted; 1 ignores the scale.

    Returns:
      mean(d^2) - variance_focus * mean(d)^2, where d is the difference of the logarithms.
    """
    difference = jnp.log(jnp.maximum(depth, 1e-3)) - jnp.log(jnp.where(mask, target, 1.0))
    mean = masked_mean(difference, mask)
    return masked_mean(jnp.square(difference), mask) - variance_focus * mean**2


def gradient_loss(
    depth_ihw: jax.Array, target_ihw: jax.Array, mask_ihw: jax.Array, *, scales: int = 4
) -> jax.Array:
    """Computes the multi-scale gradient matching loss (arXiv 1907.01341, equation 11).

    It compares the differences of neighboring pixels.

    Args:
      depth_ihw: float32 predictions.
      target_ihw: float32 targets.
      mask_ihw: bool, True where the target is valid.
      scales: number of scales; scale s uses every 2^s-th pixel.

    Returns:
      The sum over scales of the absolute differences, each divided by the number of valid pixels.
    """
    total = jnp.zeros((), jnp.float32)
    for scale in range(scales):
        part = slice(None, None, 2**scale)
        mask = mask_ihw[:, part, part]
        error = depth_ihw[:, part, part] - jnp.where(mask, target_ihw[:, part, part], 0.0)
        x = jnp.abs(jnp.diff(error, axis=2)) * (mask[:, :, 1:] & mask[:, :, :-1])
        y = jnp.abs(jnp.diff(error, axis=1)) * (mask[:, 1:] & mask[:, :-1])
        total += (jnp.sum(x) + jnp.sum(y)) / jnp.maximum(jnp.sum(mask), 1)
    return total


def normalize_robustly(x_ihw: jax.Array, mask_ihw: jax.Array) -> jax.Array:
    """Subtracts the median of the valid pixels and divides by their mean absolute deviation.

    The median of an even number of pixels is the lower one. The released code of
    Video-Depth-Anything sets invalid pixels to 0 before it computes the median; here they are
    excluded. An image without valid pixels is returned unchanged.

    Args:
      x_ihw: float32 images.
      mask_ihw: bool, True for valid pixels.
    """
    x_im, mask_im = (rearrange(x, "i h w -> i (h w)") for x in (x_ihw, mask_ihw))
    count_i = jnp.sum(mask_im, axis=1, keepdims=True)
    sorted_im = jnp.sort(jnp.where(mask_im, x_im, jnp.inf), axis=1)
    median_i = jnp.take_along_axis(sorted_im, jnp.maximum(count_i - 1, 0) // 2, axis=1)
    x_im = x_im - jnp.where(count_i > 0, median_i, 0.0)
    deviation_i = masked_mean(jnp.abs(x_im), mask_im, axis=1)
    scale_i = jnp.where(count_i > 0, jnp.maximum(deviation_i, SMALL), 1.0)
    return rearrange(x_im / scale_i, "i (h w) -> i h w", w=x_ihw.shape[2])


def trimmed_l1(
    depth: jax.Array, target: jax.Array, mask: jax.Array, *, trim: float = 0.2
) -> jax.Array:
    """Computes the mean absolute error without the largest errors.

    Args:
      depth: float32 predictions.
      target: float32 targets of the same shape.
      mask: bool, True where the target is valid.
      trim: fraction of the valid pixels of the whole batch whose error is ignored.

    Returns:
      The sum of the other errors, divided by the number of all valid pixels.
    """
    error_m = jnp.sort(
        jnp.where(mask, jnp.abs(depth - jnp.where(mask, target, 0.0)), jnp.inf), None
    )
    valid = jnp.sum(mask)
    kept_m = jnp.arange(error_m.size) < jnp.floor(valid * (1.0 - trim))
    return jnp.sum(jnp.where(kept_m, error_m, 0.0)) / jnp.maximum(valid, 1)


def temporal_gradient_loss(
    depth_bthw: jax.Array,
    target_bthw: jax.Array,
    mask_bthw: jax.Array,
    *,
    trim: float = 0.0,
    largest_change: float = 0.05,
) -> jax.Array:
    """Computes the mean absolute error of the changes of depth between consecutive frames.

    Args:
      depth_bthw: float32 predictions, in the scale of the targets.
      target_bthw: float32 targets.
      mask_bthw: bool, True where the target is valid.
      trim: see `trimmed_l1`.
      largest_change: pixels are used if their target changes by less than this fraction of the
        depth range of the second frame. Pixels that change more probably show another object.

    Returns:
      A float32 scalar.
    """
    low = jnp.min(jnp.where(mask_bthw, target_bthw, jnp.inf), axis=(2, 3), keepdims=True)
    high = jnp.max(jnp.where(mask_bthw, target_bthw, -jnp.inf), axis=(2, 3), keepdims=True)
    target_bthw = jnp.where(mask_bthw, target_bthw, 0.0)
    change = jnp.diff(target_bthw, axis=1)
    used = mask_bthw[:, 1:] & mask_bthw[:, :-1]
    used = used & (jnp.abs(change) < (high - low)[:, 1:] * largest_change)
    return trimmed_l1(jnp.diff(depth_bthw, axis=1), change, used, trim=trim)


def align_least_squares(
    depth_bthw: jax.Array, target_bthw: jax.Array, mask_bthw: jax.Array
) -> jax.Array:
    """Returns a * depth + b, with the a and b of each clip that minimize the squared error.

    If all valid pixels of a clip have the same predicted depth, the clip is returned unchanged.

    Args:
      depth_bthw: float32 predictions.
      target_bthw: float32 targets.
      mask_bthw: bool, True where the target is valid.
    """
    x_bm, y_bm, mask_bm = (
        rearrange(x, "b t h w -> b (t h w)") for x in (depth_bthw, target_bthw, mask_bthw)
    )
    y_bm = jnp.where(mask_bm, y_bm, 0.0)  # an invalid target may be NaN
    mean = functools.partial(masked_mean, mask=mask_bm, axis=1)
    mean_x, mean_y = mean(x_bm), mean(y_bm)
    variance = mean(jnp.square(x_bm - mean_x))
    varies = variance > SMALL * jnp.square(mean_x)
    covariance = mean((x_bm - mean_x) * (y_bm - mean_y))
    scale_b = jnp.where(varies, covariance / jnp.where(varies, variance, 1.0), 1.0)
    shift_b = jnp.where(varies, mean_y - scale_b * mean_x, 0.0)
    scale, shift = (rearrange(x, "b 1 -> b 1 1 1") for x in (scale_b, shift_b))
    return depth_bthw * scale + shift


def video_depth_loss(
    depth_bthw: jax.Array,
    target_bthw: jax.Array,
    mask_bthw: jax.Array,
    *,
    gradient_weight: float = 0.5,
    temporal_weight: float = 10.0,
    trim: float = 0.0,
) -> jax.Array:
    """Computes the loss of Video-Depth-Anything, which is invariant to scale and shift.

    Args:
      depth_bthw: float32 predictions.
      target_bthw: float32 targets.
      mask_bthw: bool, True where the target is valid.
      gradient_weight: weight of `gradient_loss`.
      temporal_weight: weight of `temporal_gradient_loss`, after `align_least_squares`.
      trim: see `trimmed_l1`.

    Returns:
      A float32 scalar.
    """
    depth, target, mask = (
        rearrange(x, "b t h w -> (b t) h w") for x in (depth_bthw, target_bthw, mask_bthw)
    )
    depth, target = (normalize_robustly(x, mask) for x in (depth, target))
    spatial = trimmed_l1(depth, target, mask, trim=trim)
    spatial += gradient_weight * gradient_loss(depth, target, mask)
    aligned_bthw = align_least_squares(depth_bthw, target_bthw, mask_bthw)
    temporal = temporal_gradient_loss(aligned_bthw, target_bthw, mask_bthw, trim=trim)
    return spatial + temporal_weight * temporal


LOSSES = {"l2": l2_loss, "silog": silog_loss, "video": video_depth_loss}
