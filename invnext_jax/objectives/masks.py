"""Which patches stay visible: index arrays of a fixed length, so that nothing recompiles.

Every function returns (keep_bk, masked_bm): int32 positions in raster order (time, row, column),
ascending, each position in exactly one of the two.

Shape key: b batch, t frames, y x grid rows and columns, s positions of a frame (y*x),
k kept (visible), m masked, n blocks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.errors import UserError

Grid = tuple[int, int, int]  # frames, rows, columns
Mask = tuple[jax.Array, jax.Array]
KINDS = ("semantic", "multi_block", "tube", "random")
FITS = ("scale", "cut")


def check_settings(settings: Any, places: int) -> None:
    """Checks that `draw` knows the kind, how multi-block masks are fitted, and hides something.

    Args:
      settings: `config.mask`.
      places: patches of a frame.

    Raises:
      UserError: it does not.
    """
    if settings["kind"] != "multi_block" and int(settings["ratio"] * places) < 1:
        ratio = settings["ratio"]
        raise UserError(f"mask.ratio={ratio} hides none of the {places} patches of a frame")
    for name, known in (("kind", KINDS), ("fit", FITS)):
        if settings[name] not in known:
            raise UserError(
                f"mask.{name}={settings[name]!r} is none of {', '.join(map(repr, known))}"
            )


def sample_masks(
    key: jax.Array, batch: int, grid: Grid, settings: Any, attention_bts: jax.Array | None = None
) -> list[Mask]:
    """The masks of one step: one for each kind of block of multi-block masks, else a single one.

    Args:
      key: random key.
      batch: number of clips.
      grid: frames, rows and columns.
      settings: `kind` and `ratio`, the masked share; for multi-block see `multi_blocks`.
      attention_bts: an image teacher's attention to every patch, for semantic masks.
    """
    if settings.kind == "multi_block":
        return multi_blocks(key, batch, grid, settings)
    visible = visible_per_frame(grid[1] * grid[2], settings.ratio)
    if settings.kind == "semantic":
        return [semantic(key, attention_bts, visible)]
    even = {"tube": tube, "random": random}[settings.kind]
    return [even(key, batch, grid, visible)]


def visible_per_frame(positions: int, ratio: float) -> int:
    """How many patches of a frame stay visible at a masked share of `ratio`."""
    return positions - int(ratio * positions)


def semantic(key: jax.Array, attention_bts: jax.Array, visible: int) -> Mask:
    """Draws each frame's visible patches without replacement, in proportion to attention.

    Perturbing the log weights by Gumbel noise and keeping the largest is that very distribution
    (paper section 3.2).

    Args:
      key: random key.
      attention_bts: positive weights of every patch.
      visible: patches that each frame keeps.
    """
    noise_bts = jax.random.gumbel(key, attention_bts.shape)
    return _keep_largest(jnp.log(attention_bts + 1e-30) + noise_bts, visible)


def random(key: jax.Array, batch: int, grid: Grid, visible: int) -> Mask:
    """Each frame keeps `visible` patches, drawn evenly and apart from the other frames."""
    t, y, x = grid
    return _keep_largest(jax.random.uniform(key, (batch, t, y * x)), visible)


def tube(key: jax.Array, batch: int, grid: Grid, visible: int) -> Mask:
    """As `random`, but all frames of a clip keep the same places."""
    t, y, x = grid
    score_bs = jax.random.uniform(key, (batch, y * x))
    return _keep_largest(jnp.repeat(score_bs[:, None], t, axis=1), visible)


def multi_block(
    key: jax.Array,
    batch: int,
    grid: Grid,
    *,
    blocks: int,
    share: float,
    aspect: tuple[float, float],
    visible: int,
    fit: str = "scale",
) -> Mask:
    """Masks the union of random blocks that span all frames (paper section 3.3).

    The union of random blocks has a random size; a fixed visible count is reached by growing or
    shrinking all blocks of a clip about their centres until exactly `visible` places are left.
    # Differs from reference: it cuts the visible tokens to a count in raster order, which leaves
    # the last frames with no visible token in most clips; `fit="cut"` does that.

    Args:
      key: random key.
      batch: number of clips.
      grid: frames, rows and columns.
      blocks: number of blocks.
      share: area of a block as a share of the frame.
      aspect: range of height / width, drawn once a clip.
      visible: places that each frame keeps.
      fit: "scale", or "cut": the first t * visible tokens outside the untouched blocks; where there
        are fewer, the first ones inside follow.
    """
    t, y, x = grid
    aspect_key, place_key, tie_key = jax.random.split(key, 3)
    low, high = aspect
    ratio_b = jax.random.uniform(aspect_key, (batch,), minval=low, maxval=high)
    area = share * y * x
    sides_b2 = jnp.stack([jnp.sqrt(area * ratio_b), jnp.sqrt(area / ratio_b)], axis=-1)
    frame_2 = jnp.asarray([y, x])
    sides_b2 = jnp.clip(jnp.round(sides_b2), 1, frame_2[None].astype(jnp.float32))
    # A block's corner is drawn evenly among all whole places inside the frame.
    room_b12 = (frame_2[None] - sides_b2 + 1)[:, None]
    corner_bn2 = jnp.floor(jax.random.uniform(place_key, (batch, blocks, 2)) * room_b12)
    centre_bn2 = corner_bn2 + sides_b2[:, None] / 2
    cells = np.stack(np.meshgrid(np.arange(y) + 0.5, np.arange(x) + 0.5, indexing="ij"), -1)
    cells_s2 = jnp.asarray(rearrange(cells, "y x c -> (y x) c"), jnp.float32)
    # How much a block must be scaled to reach the cell; below 1 the drawn block covers it.
    offset_bns2 = jnp.abs(cells_s2[None, None] - centre_bn2[:, :, None])
    reach_bns = jnp.max(offset_bns2 / (sides_b2[:, None, None] / 2), axis=-1)
    score_bs = jnp.min(reach_bns, axis=1)
    if fit == "cut":
        outside_bn = jnp.tile(score_bs >= 1.0, (1, t))
        rank_1n = -jnp.arange(t * y * x)[None]
        return _keep_largest((rank_1n + t * y * x * outside_bn)[:, None], t * visible)
    score_bs += 1e-4 * jax.random.uniform(tie_key, score_bs.shape)
    return _keep_largest(jnp.repeat(score_bs[:, None], t, axis=1), visible)


def multi_blocks(key: jax.Array, batch: int, grid: Grid, settings: Any) -> list[Mask]:
    """One multi-block mask for each kind of block.

    Args:
      key: random key.
      batch: number of clips.
      grid: frames, rows and columns.
      settings: `blocks`: (count, share) of each kind; `visible`: share of each frame that stays
        visible, one for each kind; `aspect`: range; `fit`: how that share is met.
    """
    places = grid[1] * grid[2]
    kinds = zip(settings.blocks, settings.visible, strict=True)
    return [
        multi_block(
            jax.random.fold_in(key, i),
            batch,
            grid,
            blocks=count,
            share=share,
            aspect=settings.aspect,
            visible=max(1, int(visible * places)),
            fit=settings.fit,
        )
        for i, ((count, share), visible) in enumerate(kinds)
    ]


def predicted_count(masked: int, share: float) -> int:
    """How many of so many masked places are predicted."""
    return max(1, round(share * masked))


def sample_predicted(key: jax.Array, masked_bm: jax.Array, share: float) -> jax.Array:
    """Draws evenly, for each clip, which of the masked places are predicted.

    Args:
      key: random key.
      masked_bm: the masked places.
      share: how many of them, as a share.

    Returns:
      int32 indices into `masked_bm`, ascending.
    """
    order_bm = jnp.argsort(jax.random.uniform(key, masked_bm.shape), axis=1)
    return jnp.sort(order_bm[:, : predicted_count(masked_bm.shape[1], share)], axis=1)


def _keep_largest(score_bts: jax.Array, visible: int) -> Mask:
    """Keeps the `visible` largest scores of every frame."""
    s = score_bts.shape[2]
    order_bts = jnp.argsort(-score_bts, axis=-1)
    return _raster(order_bts[..., :visible], s), _raster(order_bts[..., visible:], s)


def _raster(place_btk: jax.Array, positions: int) -> jax.Array:
    place_btk = jnp.sort(place_btk, axis=-1)
    offset_t = positions * jnp.arange(place_btk.shape[1])
    return rearrange(place_btk + offset_t[None, :, None], "b t k -> b (t k)").astype(jnp.int32)
