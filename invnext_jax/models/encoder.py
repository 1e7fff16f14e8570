"""The video encoder: a ViT over the visible patches of every frame (paper section 3.1).

Shape key: b batch, t frames, h w pixels, c channels, n tokens, k kept (visible) tokens,
p pixels of a patch, d width, l taps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError, check_minimums
from invnext_jax.models.dot_general import select_precision
from invnext_jax.models.gather import gather_rows, gather_tokens
from invnext_jax.models.layers import Block, Dtype, RMSNorm, check_heads
from invnext_jax.models.patches import clip_grid, patchify
from invnext_jax.models.positions import PositionTable
from invnext_jax.models.scan import scan_blocks
from invnext_jax.models.sharding import with_logical_axes


class EncoderOutput(NamedTuple):
    """Output of the encoder, float32.

    Attributes:
      tokens_bnd: class tokens, then the visible tokens in raster order (time, row, column).
      taps_lbnd: the same tokens after each tapped layer.
    """

    tokens_bnd: jax.Array
    taps_lbnd: jax.Array


class PatchEmbed(nn.Module):
    """Patch embedding: RMSNorm of the pixels, a linear layer, and RMSNorm of the tokens."""

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, patches_bnp: jax.Array) -> jax.Array:
        """Maps [b n p] to float32 [b n d]."""

        def uniform(key, shape, dtype):  # same initialization as the convolution of the reference
            bound = patches_bnp.shape[-1] ** -0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        x_bnp = RMSNorm(self.dtype, name="norm_before")(patches_bnp)
        projection = nn.Dense(
            self.width,
            dtype=self.dtype,
            precision=select_precision(self.dtype),
            kernel_init=with_logical_axes(uniform, (None, "embed")),
            bias_init=with_logical_axes(uniform, ("embed",)),
            name="proj",
        )
        return RMSNorm(jnp.float32, name="norm")(projection(x_bnp))


class Encoder(nn.Module):
    """Vision transformer with class tokens and a learned position table, without a final norm."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    size: int
    frames: int
    class_tokens: int
    layer_scale: float
    drop_path: float
    dtype: Dtype = jnp.float32
    remat: str = "none"
    unroll: int = 1
    taps: Sequence[int] = ()

    @nn.compact
    def __call__(self, video_bthwc: jax.Array, keep_bk: jax.Array | None = None) -> EncoderOutput:
        """Encodes the visible patches of normalized clips.

        Args:
          video_bthwc: normalized float clips with any number of frames; height and width are
            multiples of `patch`.
          keep_bk: int32 positions of the visible patches, ascending; None for all patches.

        Returns:
          The final tokens, float32 [b, class_tokens + k, d], and the output of each layer in
          `taps`, float32 [l, b, class_tokens + k, d].
        """
        b, side = video_bthwc.shape[0], self.size // self.patch
        patches_bnp = patchify(video_bthwc, self.patch)
        table = PositionTable(
            self.width, (self.frames, side, side), self.class_tokens, name="position"
        )(clip_grid(video_bthwc, self.patch))
        class_cd, grid_nd = table[: self.class_tokens], table[self.class_tokens :]
        if keep_bk is not None:
            patches_bnp = gather_tokens(patches_bnp, keep_bk)
            position_bnd = gather_rows(grid_nd, keep_bk)
        else:
            position_bnd = grid_nd[None]
        x_bnd = PatchEmbed(self.width, self.dtype, name="patch_embed")(patches_bnp) + position_bnd
        tokens_cd = self.param(
            "class_token",
            with_logical_axes(nn.initializers.normal(0.02), (None, "embed")),
            (self.class_tokens, self.width),
            jnp.float32,
        )
        tokens_bcd = jnp.broadcast_to((tokens_cd + class_cd)[None], (b, *tokens_cd.shape))
        x_bnd = jnp.concatenate([tokens_bcd, x_bnd], axis=1)
        block = Block(self.heads, self.mlp_width, self.layer_scale, self.dtype, name="blocks")
        x_bnd, taps_lbnd = scan_blocks(
            block,
            x_bnd,
            depth=self.depth,
            taps=self.taps,
            drop_path=self.drop_path,
            remat=self.remat,
            unroll=self.unroll,
        )
        return EncoderOutput(x_bnd, taps_lbnd)


def check_config(config: Any) -> None:
    """Checks the values in `config.encoder`, and that frames divide into whole patches.

    Raises:
      UserError: the width or the frame size is not divisible as required, the drop rate is not a
        probability, or the layer scale is negative.
    """
    patch = config.encoder.patch
    for name, size in (("data.size", config.data.size), ("encoder.size", config.encoder.size)):
        if size % patch:
            raise UserError(
                f"config.{name}={size} must be divisible by config.encoder.patch={patch}"
            )
    if not 0 <= config.encoder.drop_path < 1:
        raise UserError(
            f"config.encoder.drop_path={config.encoder.drop_path} must be at least 0 and less than "
            "1: it is the probability with which the last layer is skipped"
        )
    check_minimums(config, {"encoder.layer_scale": 0})
    check_heads(config, "encoder")
    e = config.encoder
    if e.width % 16:  # see `positions.sincos_table`
        raise UserError(f"config.encoder.width={e.width} must be divisible by 16")
    if e.width % e.pool_heads:
        raise UserError(
            f"config.encoder.width={e.width} must be divisible by encoder.pool_heads={e.pool_heads}"
        )


def from_config(config: Any, taps: Sequence[int] = ()) -> Encoder:
    """Builds the encoder of a run's config; `taps` lists the layers whose outputs are returned."""
    e = config.encoder
    return Encoder(
        width=e.width,
        depth=e.depth,
        heads=e.heads,
        mlp_width=e.mlp_width,
        patch=e.patch,
        size=e.size,
        frames=e.frames,
        class_tokens=e.class_tokens,
        layer_scale=e.layer_scale,
        drop_path=e.drop_path,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        unroll=getattr(config, "scan_unroll", 1),  # missing in the configs of exported models
        taps=tuple(taps),
    )
