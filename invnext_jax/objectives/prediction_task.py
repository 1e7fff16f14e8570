"""Which masked patches the predictor predicts, and which visible patches it gets.

Shape key: b clips, k visible patches, m masked patches, t frames.
"""

from typing import Any

import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.objectives.masks import Grid


def check_settings(settings: Any, frames: int) -> None:
    """Checks which patches the predictor gets and predicts.

    Args:
      settings: `config.mask`.
      frames: frames of a clip.

    Raises:
      UserError: `predicted` or `context_frames` is out of range.
    """
    if not 0 < settings.predicted <= 1:
        share = f"config.mask.predicted={settings.predicted}, the fraction of predicted patches,"
        raise UserError(f"{share} must be above 0 and at most 1")
    if not 0 <= settings.context_frames <= frames:
        raise UserError(
            f"config.mask.context_frames={settings.context_frames} must be 0 (all frames) or at "
            f"most config.data.frames={frames}"
        )


def predicted_count(masked: int, share: float) -> int:
    """Returns how many of `masked` positions are predicted, at least one."""
    return max(1, round(share * masked))


def sample_predicted(key: jax.Array, masked_bm: jax.Array, share: float) -> jax.Array:
    """Draws the masked positions that are predicted, uniformly and independently for each clip.

    Args:
      key: random key.
      masked_bm: the masked positions.
      share: fraction of the masked positions that is predicted.

    Returns:
      int32 indices into `masked_bm`, ascending.
    """
    order_bm = jnp.argsort(jax.random.uniform(key, masked_bm.shape), axis=1)
    return jnp.sort(order_bm[:, : predicted_count(masked_bm.shape[1], share)], axis=1)


def sample_context(key: jax.Array, keep_bk: jax.Array, grid: Grid, frames: int) -> jax.Array:
    """Draws the frames whose visible patches the predictor gets.

    Only frames with visible patches are drawn, uniformly and independently for each clip.

    Args:
      key: random key.
      keep_bk: positions of the visible patches.
      grid: frames, rows and columns of the clips.
      frames: number of frames to draw. If fewer have visible patches, all of these are drawn.

    Returns:
      Bool [b k], whether the predictor gets the patch.
    """
    t, y, x = grid
    frame_bk = keep_bk // (y * x)
    is_visible_bt = jax.vmap(lambda frame_k: jnp.zeros(t, bool).at[frame_k].set(True))(frame_bk)
    order_bt = jax.random.uniform(key, is_visible_bt.shape) + is_visible_bt
    rank_bt = jnp.argsort(jnp.argsort(-order_bt, axis=1), axis=1)
    return jnp.take_along_axis(rank_bt, frame_bk, axis=1) < frames
