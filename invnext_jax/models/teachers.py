"""Frozen image teachers: SigLIP2's vision tower with its attention-pooling head.

Shape key: b images (frames of all clips), h w pixels, c channels, n tokens, d width, l taps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.models.axes import logical
from invnext_jax.models.layers import Dtype, Mlp, dense, layer_norm, run_stack, unit
from invnext_jax.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from invnext_jax.models.positions import cubic_weights, resize_table
from invnext_jax.models.vision import VisionAttention, VisionBlock

KINDS = ("siglip2",)  # of `config.teacher.kind`


class TeacherOutput(NamedTuple):
    """Features of every image, float32.

    Attributes:
      taps_lbnd: unit vectors, the inputs of the tapped layers, in ascending depth.
      pooled_bd: unit vectors of the pooling head.
      attention_bn: head-averaged weights of the pooling query; each row sums to 1.
    """

    taps_lbnd: jax.Array
    pooled_bd: jax.Array
    attention_bn: jax.Array


def tapped_layers(depth: int, count: int, interval: float) -> tuple[int, ...]:
    """The layers whose inputs are tapped, ascending: depth - int(i * interval) - 1."""
    return tuple(sorted(depth - int(i * interval) - 1 for i in range(count)))


def preprocess(video_bthwc: jax.Array, size: int) -> jax.Array:
    """Turns clips with ImageNet normalisation into the teacher's images.

    Args:
      video_bthwc: float32 clips.
      size: side of the teacher's images; other sizes are resized bicubically.

    Returns:
      float32 [b*t, size, size, c] with values from -1 to 1.
    """
    mean, std = (v.reshape(1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    images_bhwc = rearrange(video_bthwc, "b t h w c -> (b t) h w c")
    if images_bhwc.shape[1:3] != (size, size):
        rows, columns = (cubic_weights(old, size) for old in images_bhwc.shape[1:3])
        images_bhwc = jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, images_bhwc)
    return (images_bhwc * std + mean - 0.5) / 0.5


class AttentionPoolingHead(nn.Module):
    """A learned probe attends to all tokens; an MLP refines the result."""

    heads: int
    mlp_width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the pooled feature [b d] and the probe's weights [b n]."""
        b, _, d = x_bnd.shape
        probe_nd = self.param("probe", nn.initializers.normal(0.02), (1, d), jnp.float32)
        query_bnd = jnp.broadcast_to(probe_nd[None], (b, 1, d))
        attention = VisionAttention(self.heads, self.dtype, name="attn")
        x_bnd, weights_bqn = attention(x_bnd, query_bnd, weights=True)
        x_bnd = x_bnd.astype(jnp.float32)
        h_bnd = layer_norm(1e-6, self.dtype, "norm")(x_bnd)
        x_bnd = x_bnd + Mlp(self.mlp_width, self.dtype, name="mlp")(h_bnd).astype(jnp.float32)
        return x_bnd[:, 0], weights_bqn[:, 0]


class SigLip2(nn.Module):
    """SigLIP2 vision transformer.

    `size` is what the position table is built for; images of another size resize the table.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    size: int
    taps: Sequence[int] = ()
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images_bhwc: jax.Array) -> TeacherOutput:
        """Encodes images with values from -1 to 1.

        Args:
          images_bhwc: float images; the sides divide by `patch`.
        """
        rows, columns = (side // self.patch for side in images_bhwc.shape[1:3])
        pattern = "b (y p) (x q) c -> b (y x) (p q c)"
        patches_bnp = rearrange(images_bhwc, pattern, p=self.patch, q=self.patch)
        embed = dense(self.width, (None, "embed"), name="patch_embed", dtype=self.dtype)
        side = self.size // self.patch
        init = logical(nn.initializers.normal(0.02), (None, "embed"))
        table_nd = self.param("position", init, (side * side, self.width), jnp.float32)
        table_nd = resize_table(table_nd, (1, side, side), (1, rows, columns), 0)
        x_bnd = embed(patches_bnp).astype(jnp.float32) + table_nd[None]
        block = VisionBlock(self.heads, self.mlp_width, self.dtype, name="blocks")
        x_bnd, taps_lbnd = run_stack(block, x_bnd, depth=self.depth, taps=self.taps)
        x_bnd = layer_norm(1e-6, self.dtype, "norm")(x_bnd)
        head = AttentionPoolingHead(self.heads, self.mlp_width, self.dtype, name="head")
        pooled_bd, attention_bn = head(x_bnd)
        return TeacherOutput(unit(taps_lbnd), unit(pooled_bd), attention_bn)


def from_config(config: Any) -> SigLip2:
    """The teacher that a run's config describes."""
    t = config.teacher
    return SigLip2(
        width=t.width,
        depth=t.depth,
        heads=t.heads,
        mlp_width=t.mlp_width,
        patch=t.patch,
        size=t.train_size,
        taps=tapped_layers(t.depth, t.taps, t.tap_interval),
        dtype=jnp.dtype(config.dtype),
    )
