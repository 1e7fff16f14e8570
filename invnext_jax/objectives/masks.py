"""Masks: random choices of the visible patches of a clip (paper section 3).

A mask is a pair (keep_bk, masked_bm) of int32 positions in raster order (time, row, column). Both
arrays are ascending, and each position is in exactly one of them. Their lengths depend only on the
settings and the grid, so the training step is compiled only once.

To add a mask, write a `MaskFunction` and decorate it with `register_mask`; `config.mask.kind`
selects it by name.

Shape key: b batch, t frames, y x grid rows and columns, s positions of a frame (y*x), k kept
(visible), m masked, n blocks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.errors import UserError

Grid = tuple[int, int, int]  # frames, rows, columns
Mask = tuple[jax.Array, jax.Array]  # keep_bk, masked_bm
# (key, batch, grid, settings, attention_bts) -> masks of one training step
MaskFunction = Callable[[jax.Array, int, Grid, Any, jax.Array | None], list[Mask]]
FITS = ("scale", "cut")


class MaskKind(NamedTuple):
    """A registered mask function and its requirements.

    Attributes:
      sample: draws the masks of one step.
      needs_attention: whether `sample` needs the image teacher's attention.
      options: names of the options that `sample` uses, in addition to those of all kinds.
    """

    sample: MaskFunction
    needs_attention: bool
    options: tuple[str, ...]


REGISTRY: dict[str, MaskKind] = {}


def register_mask(
    name: str, *, needs_attention: bool = False, options: tuple[str, ...] = ("ratio",)
) -> Callable[[MaskFunction], MaskFunction]:
    """Returns a decorator that adds a mask function to the registry.

    Args:
      name: value of `config.mask.kind` that selects the function.
      needs_attention: whether the function needs the image teacher's attention. A run then loads
        the teacher and passes attention_bts, a positive float32 weight for each patch.
      options: names of the fields of `config.mask` that the function reads. If they include
        "ratio", it masks the fraction `settings.ratio` of each frame.
    """

    def register(sample: MaskFunction) -> MaskFunction:
        REGISTRY[name] = MaskKind(sample, needs_attention, options)
        return sample

    return register


def needs_attention(settings: Any) -> bool:
    """Returns whether the masks of `config.mask` need the image teacher's attention."""
    return REGISTRY[settings.kind].needs_attention


def check_settings(settings: Any, positions: int) -> None:
    """Checks how `config.mask` draws masks.

    Args:
      settings: `config.mask`.
      positions: number of patches of a frame.

    Raises:
      UserError: a name is unknown, a value is out of range, or `ratio` masks no patches.
    """
    if not 0 < settings.ratio < 1:
        raise UserError(f"config.mask.ratio={settings.ratio} must be between 0 and 1")
    for name, value, known in (("kind", settings.kind, REGISTRY), ("fit", settings.fit, FITS)):
        if value not in known:
            raise UserError(f"mask.{name}={value!r} must be one of {', '.join(map(repr, known))}")
    if "ratio" in REGISTRY[settings.kind].options and not count_patches(settings.ratio, positions):
        raise UserError(f"mask.ratio={settings.ratio} masks none of a frame's {positions} patches")
    if "blocks" in REGISTRY[settings.kind].options:
        _check_blocks(settings)


def _check_blocks(settings: Any) -> None:
    """Checks the options of `multi_block_masks`."""
    blocks, visible, aspect = settings.blocks, settings.visible, settings.aspect
    pairs = [len(p) == 2 and p[0] == int(p[0]) >= 1 and 0 < p[1] <= 1 for p in blocks]
    rules = {
        "blocks": (
            any(pairs) and all(pairs),
            "pairs (number of blocks, area of a block as a fraction of the frame)",
        ),
        "visible": (
            len(visible) == len(blocks) and all(0 < fraction < 1 for fraction in visible),
            "a fraction between 0 and 1 for each pair of config.mask.blocks",
        ),
        "aspect": (len(aspect) == 2 and 0 < aspect[0] <= aspect[1], "two numbers, smaller first"),
        "max_temporal_keep": (0 < settings.max_temporal_keep <= 1, "above 0 and at most 1"),
    }
    for name, (is_valid, rule) in rules.items():
        if not is_valid:
            raise UserError(f"config.mask.{name}={settings[name]} must be {rule}")


def sample_masks(
    key: jax.Array, batch: int, grid: Grid, settings: Any, attention_bts: jax.Array | None = None
) -> list[Mask]:
    """Draws the masks of one step. Multi-block masking returns several; all other kinds return one.

    Args:
      key: random key.
      batch: number of clips.
      grid: frames, rows and columns.
      settings: `config.mask`.
      attention_bts: the image teacher's attention to each patch, if `needs_attention`.
    """
    return REGISTRY[settings.kind].sample(key, batch, grid, settings, attention_bts)


def count_patches(share: float, positions: int) -> int:
    """Returns a fraction of the patches, rounded down. Exact numbers ignore rounding errors."""
    return int(share * positions + 1e-9)


def visible_per_frame(positions: int, ratio: float) -> int:
    """Returns the number of visible patches in a frame if the fraction `ratio` is masked."""
    return positions - count_patches(ratio, positions)


def visible_frames(settings: Any, frames: int) -> int:
    """Returns the number of frames, from the start of a clip, that can have visible patches."""
    if "max_temporal_keep" not in REGISTRY[settings.kind].options:
        return frames
    return max(1, round(settings.max_temporal_keep * frames))


@register_mask("semantic", needs_attention=True)
def semantic_masks(
    key: jax.Array, batch: int, grid: Grid, settings: Any, attention_bts: jax.Array
) -> list[Mask]:
    """Draws the visible patches of each frame without replacement, in proportion to attention.

    Uses the Gumbel top-k trick (paper section 3.2): add Gumbel noise to the log weights and keep
    the largest. This samples exactly from the desired distribution.
    """
    del batch
    visible = visible_per_frame(grid[1] * grid[2], settings.ratio)
    noise_bts = jax.random.gumbel(key, attention_bts.shape)
    return [_keep_largest(jnp.log(attention_bts + 1e-30) + noise_bts, visible)]


@register_mask("multi_block", options=("blocks", "visible", "aspect", "fit", "max_temporal_keep"))
def multi_block_masks(
    key: jax.Array, batch: int, grid: Grid, settings: Any, attention_bts: jax.Array | None = None
) -> list[Mask]:
    """Draws one multi-block mask for each block size (paper section 3.3); see `multi_block_mask`.

    For each size, `settings.blocks` has the number of blocks and their area, `settings.visible` the
    visible fraction of a frame. Frames after the first `visible_frames` are masked completely.
    """
    del attention_bts
    positions = grid[1] * grid[2]
    frames = visible_frames(settings, grid[0])
    hidden_bm = jnp.tile(jnp.arange(frames * positions, grid[0] * positions), (batch, 1))
    sizes = zip(settings.blocks, settings.visible, strict=True)
    found = [
        multi_block_mask(
            jax.random.fold_in(key, i),
            batch,
            (frames, *grid[1:]),
            blocks=count,
            share=share,
            aspect=settings.aspect,
            visible=max(1, count_patches(visible, positions)),
            fit=settings.fit,
        )
        for i, ((count, share), visible) in enumerate(sizes)
    ]
    return [(keep_bk, jnp.concatenate([m_bm, hidden_bm], axis=1)) for keep_bk, m_bm in found]


@register_mask("tube")
def tube_masks(
    key: jax.Array, batch: int, grid: Grid, settings: Any, attention_bts: jax.Array | None = None
) -> list[Mask]:
    """Draws visible patches uniformly, with the same positions in all frames of a clip."""
    del attention_bts
    t, y, x = grid
    score_bs = jax.random.uniform(key, (batch, y * x))
    score_bts = jnp.repeat(score_bs[:, None], t, axis=1)
    return [_keep_largest(score_bts, visible_per_frame(y * x, settings.ratio))]


@register_mask("random")
def random_masks(
    key: jax.Array, batch: int, grid: Grid, settings: Any, attention_bts: jax.Array | None = None
) -> list[Mask]:
    """Draws visible patches uniformly and independently in each frame."""
    del attention_bts
    t, y, x = grid
    score_bts = jax.random.uniform(key, (batch, t, y * x))
    return [_keep_largest(score_bts, visible_per_frame(y * x, settings.ratio))]


def multi_block_mask(
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
    """Masks a union of random blocks that extend over all frames (paper section 3.3).

    The union of random blocks has a random size, but the training step needs a fixed number of
    visible patches. With fit="scale", all blocks of a clip are scaled about their centers until
    exactly `visible` positions of each frame are left.

    Args:
      key: random key.
      batch: number of clips.
      grid: frames, rows and columns.
      blocks: number of blocks in a clip.
      share: area of a block as a fraction of the frame.
      aspect: range of height / width, which is drawn once for each clip.
      visible: number of positions that each frame keeps.
      fit: "scale" or "cut". With "cut", the blocks keep their size. The first t * visible positions
        outside the blocks, in raster order, are visible. If there are too few, the first positions
        inside the blocks are added.
    """
    # Differs from reference: it always uses "cut", which leaves the last frames of most clips
    # without any visible token.
    t, y, x = grid
    aspect_key, corner_key, tie_key = jax.random.split(key, 3)
    ratio_b = jax.random.uniform(aspect_key, (batch,), minval=aspect[0], maxval=aspect[1])
    area = share * y * x
    sides_b2 = jnp.stack([jnp.sqrt(area * ratio_b), jnp.sqrt(area / ratio_b)], axis=-1)
    frame_2 = jnp.asarray([y, x])
    sides_b2 = jnp.clip(jnp.round(sides_b2), 1, frame_2[None].astype(jnp.float32))
    # The corner is uniform over the integer positions at which the block fits into the frame.
    room_b12 = (frame_2[None] - sides_b2 + 1)[:, None]
    corner_bn2 = jnp.floor(jax.random.uniform(corner_key, (batch, blocks, 2)) * room_b12)
    center_bn2 = corner_bn2 + sides_b2[:, None] / 2
    cells_s2 = jnp.asarray(np.argwhere(np.ones((y, x))) + 0.5, jnp.float32)
    # The scale factor at which a block reaches each cell. It covers cells with factors below 1.
    offset_bns2 = jnp.abs(cells_s2[None, None] - center_bn2[:, :, None])
    reach_bns = jnp.max(offset_bns2 / (sides_b2[:, None, None] / 2), axis=-1)
    score_bs = jnp.min(reach_bns, axis=1)
    if fit == "cut":
        outside_bn = jnp.tile(score_bs >= 1.0, (1, t))
        rank_1n = -jnp.arange(t * y * x)[None]
        return _keep_largest((rank_1n + t * y * x * outside_bn)[:, None], t * visible)
    score_bs += 1e-4 * jax.random.uniform(tie_key, score_bs.shape)
    return _keep_largest(jnp.repeat(score_bs[:, None], t, axis=1), visible)


def _keep_largest(score_bts: jax.Array, visible: int) -> Mask:
    """Returns the mask that keeps the `visible` positions with the largest scores in each frame."""
    _, t, s = score_bts.shape
    order_bts = jnp.argsort(-score_bts, axis=-1)
    parts = (jnp.sort(part, axis=-1) for part in jnp.split(order_bts, [visible], axis=-1))
    in_clip = (part_btn + s * jnp.arange(t)[None, :, None] for part_btn in parts)
    keep_bk, masked_bm = (rearrange(x, "b t n -> b (t n)").astype(jnp.int32) for x in in_clip)
    return keep_bk, masked_bm
