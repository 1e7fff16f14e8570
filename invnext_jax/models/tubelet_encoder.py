"""The video encoders V-JEPA 2 (arXiv 2506.09985) and VideoMAE (arXiv 2203.12602).

Both are plain vision transformers on tubelets, which are patches of several frames. They differ in
their position embeddings: V-JEPA 2 has rotary embeddings, and VideoMAE adds a fixed sin-cos table.

Shape key: b batch, t frames, h w pixels, c channels, s frames of a tubelet, r q rows and columns of
a patch, n tubelets, d width, l taps.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.models.layers import Dtype, dense, layer_norm
from invnext_jax.models.patches import Grid
from invnext_jax.models.positions import interleaved_sincos_table, resize_table
from invnext_jax.models.scan import scan_blocks
from invnext_jax.models.vit import VisionBlock


class TubeletOutput(NamedTuple):
    """Output of the encoder, float32.

    Attributes:
      tokens_bnd: tokens of the tubelets, in raster order (time slot, row, column).
      taps_lbnd: the same tokens after each tapped layer.
      pooled_bd: the normalized mean token; None without `pool_norm`.
    """

    tokens_bnd: jax.Array
    taps_lbnd: jax.Array
    pooled_bd: jax.Array | None


class TubeletEncoder(nn.Module):
    """Vision transformer on the tubelets of a clip, without class tokens.

    Attributes:
      kind: "vjepa2" has rotary position embeddings; "videomae" has a sin-cos table.
      width: width of the tokens.
      depth: number of blocks.
      heads: attention heads.
      mlp_width: hidden width of the MLPs.
      patch: height and width of a patch in pixels.
      tubelet: number of frames of a tubelet.
      size: height and width in pixels of the frames that the encoder was trained with.
      frames: number of frames that the encoder was trained with. Both sizes determine VideoMAE's
        table, which is resized for other clips.
      eps: epsilon of the norms of blocks and tokens.
      final_norm: whether the tokens are normalized at the end.
      pool_norm: whether to also return the mean token after a LayerNorm, which is the input of the
        classifier of a fine-tuned VideoMAE.
      taps: states to return, ascending; state i is the residual stream after i blocks.
      dtype: dtype of the matrix products.
    """

    kind: str
    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    tubelet: int
    size: int
    frames: int
    eps: float
    final_norm: bool = True
    pool_norm: bool = False
    taps: Sequence[int] = ()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, video_bthwc: jax.Array) -> TubeletOutput:
        """Encodes normalized float clips.

        Args:
          video_bthwc: clips. The number of frames is a multiple of `tubelet`; height and width are
            multiples of `patch`.
        """
        _, t, h, w, _ = video_bthwc.shape
        grid = (t // self.tubelet, h // self.patch, w // self.patch)
        tubelets_bnsrqc = rearrange(
            video_bthwc,
            "b (t s) (y r) (x q) c -> b (t y x) s r q c",
            s=self.tubelet,
            r=self.patch,
            q=self.patch,
        )
        axes = (None, None, None, None, "embed")
        embed = dense(self.width, axes, name="patch_embed", dtype=self.dtype, contract=4)
        x_bnd = embed(tubelets_bnsrqc).astype(jnp.float32)
        if self.kind == "videomae":
            x_bnd = x_bnd + self._position_table(grid)[None]
        block = VisionBlock(
            self.heads,
            self.mlp_width,
            self.dtype,
            eps=self.eps,
            activation="gelu",
            rotary_grid=grid if self.kind == "vjepa2" else None,
            name="blocks",
        )
        x_bnd, taps_lbnd = scan_blocks(block, x_bnd, depth=self.depth, taps=self.taps)
        if self.final_norm:
            x_bnd = layer_norm(self.eps, jnp.float32, "norm")(x_bnd)
        pooled_bd = None
        if self.pool_norm:
            # PyTorch's default epsilon, which does not depend on that of the blocks.
            pooled_bd = layer_norm(1e-5, jnp.float32, "pool_norm")(jnp.mean(x_bnd, axis=1))
        return TubeletOutput(x_bnd, taps_lbnd, pooled_bd)

    def _position_table(self, grid: Grid) -> jax.Array:
        side = self.size // self.patch
        own_grid = (self.frames // self.tubelet, side, side)
        table_nd = interleaved_sincos_table(self.width, own_grid[0] * side * side)
        return resize_table(jnp.asarray(table_nd), own_grid, grid, 0)


def from_sizes(sizes: Mapping[str, Any], taps: Sequence[int] = ()) -> TubeletEncoder:
    """Builds the encoder from the sizes that `weights.import_weights.read_tubelet_encoder` returns.

    Args:
      sizes: the fields of `TubeletEncoder`, with `train_size` for `size`.
      taps: see `TubeletEncoder`.
    """
    fields = {"size" if name == "train_size" else name: value for name, value in sizes.items()}
    return TubeletEncoder(**fields, taps=tuple(taps))
