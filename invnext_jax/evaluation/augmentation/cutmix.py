"""CutMix (arXiv 1905.04899): replaces a rectangle of each clip with that of another clip.

Shape key: b clips, t frames, h w pixels, c channels, k classes.
"""

import jax
import jax.numpy as jnp


def sample_boxes(
    key: jax.Array, count: int, height: int, width: int, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Samples the rectangles that are replaced.

    The fraction of the frame that is kept has the distribution Beta(alpha, alpha). The center is
    uniform, and the parts of a rectangle that are outside the frame are cut off.

    Args:
      key: random key.
      count: number of rectangles b.
      height: height of a frame in pixels.
      width: width of a frame in pixels.
      alpha: parameter of the distribution, positive.

    Returns:
      bool masks [b h w], True inside the rectangle, and float32 [b], the fraction of the frame that
      is outside it.
    """
    share_key, y_key, x_key = jax.random.split(key, 3)
    share_b = jax.random.beta(share_key, alpha, alpha, (count,))

    def sample_side(key, size):
        length_b = jnp.floor(size * jnp.sqrt(1 - share_b))
        center_b = jax.random.randint(key, (count,), 0, size)
        low_b = center_b - length_b // 2
        place = jnp.arange(size)[None]
        return (place >= low_b[:, None]) & (place < (center_b + length_b // 2)[:, None])

    mask_bhw = sample_side(y_key, height)[:, :, None] & sample_side(x_key, width)[:, None]
    return mask_bhw, 1.0 - jnp.mean(mask_bhw, axis=(1, 2), dtype=jnp.float32)


def cutmix(
    key: jax.Array, video_bthwc: jax.Array, targets: list[jax.Array], alpha: float
) -> tuple[jax.Array, list[jax.Array]]:
    """Mixes clip i with clip b - 1 - i, with the same rectangle in all frames.

    Args:
      key: random key.
      video_bthwc: uint8 clips.
      targets: float32 class probabilities [b k] of each task.
      alpha: parameter of the beta distribution; 0 returns the inputs.

    Returns:
      The mixed clips, and the targets, mixed in proportion to the areas.
    """
    if not alpha:
        return video_bthwc, targets
    b, _, h, w, _ = video_bthwc.shape
    mask_bhw, share_b = sample_boxes(key, b, h, w, alpha)
    mixed_bthwc = jnp.where(mask_bhw[:, None, :, :, None], video_bthwc[::-1], video_bthwc)
    share_b1 = share_b[:, None]
    return mixed_bthwc, [share_b1 * y + (1 - share_b1) * y[::-1] for y in targets]
