"""Random choice of the frames that the image teacher encodes (`config.teacher.frames_share`).

In each step, the teacher encodes f of the t frames of each clip, drawn uniformly without
replacement. Alignment losses compare only the tokens of these frames. The weights of
`locate_tokens` make their expected value over the draws equal to the loss over all frames, for
fixed masks. Masks of the other frames are drawn from the attention of the nearest encoded frame.

Shape key: b batch, t frames, f encoded frames, s positions of a frame, k visible tokens.
"""

import jax
import jax.numpy as jnp


def count_frames(frames: int, share: float) -> int:
    """Returns the number of encoded frames: the fraction `share` of `frames`, rounded."""
    return round(share * frames)


def sample_frames(key: jax.Array, batch: int, frames: int, count: int) -> jax.Array:
    """Draws the encoded frames of each clip, uniformly and independently.

    Returns:
      int32 [b f], ascending; f is `count`.
    """
    order_bt = jnp.argsort(jax.random.uniform(key, (batch, frames)), axis=1)
    return jnp.sort(order_bt[:, :count], axis=1)


def nearest_frames(frames_bf: jax.Array, frames: int) -> jax.Array:
    """Finds the nearest encoded frame of each frame; of two at the same distance, the earlier.

    Args:
      frames_bf: the encoded frames, ascending.
      frames: number of frames of a clip, t.

    Returns:
      int32 [b t], indices into the second axis of `frames_bf`.
    """
    distance_btf = jnp.abs(jnp.arange(frames)[None, :, None] - frames_bf[:, None])
    return jnp.argmin(distance_btf, axis=2)


def locate_tokens(
    frames_bf: jax.Array, keep_bk: jax.Array, frames: int, positions: int
) -> tuple[jax.Array, jax.Array]:
    """Finds the teacher's tokens at visible positions of a clip.

    Args:
      frames_bf: the encoded frames, ascending.
      keep_bk: visible positions of the clip, in raster order.
      frames: number of frames of a clip, t.
      positions: number of positions of a frame, s.

    Returns:
      int32 [b k], the positions in the sequence of f * s tokens of the encoded frames; and float32
      [b k], the weights: t / f for tokens of encoded frames, which is the inverse of the
      probability that a frame is encoded, and 0 for all other tokens.
    """
    frame_bk = keep_bk // positions
    index_bk = jnp.take_along_axis(nearest_frames(frames_bf, frames), frame_bk, axis=1)
    encoded_bk = jnp.take_along_axis(frames_bf, index_bk, axis=1) == frame_bk
    weight_bk = encoded_bk * jnp.float32(frames / frames_bf.shape[1])
    return index_bk * positions + keep_bk % positions, weight_bk
