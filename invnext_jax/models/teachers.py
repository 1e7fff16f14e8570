"""Frozen image teachers: the image towers of SigLIP2, CLIP and DINOv2, as they were published.

Shape key: b images (frames of all clips), h w pixels, c channels, n tokens, d width, l taps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.models.layers import (
    Dtype,
    Mlp,
    dense,
    l2_normalize,
    layer_norm,
    run_stack,
    small_normal,
)
from invnext_jax.models.patches import IMAGENET_MEAN, IMAGENET_STD, patchify
from invnext_jax.models.positions import cubic_weights, linear_weights, resize_table
from invnext_jax.models.sharding import IMAGES, logical
from invnext_jax.models.vit import VisionAttention, VisionBlock

KINDS = ("siglip2", "clip", "dinov2")
_PIXELS = {  # mean and deviation of the pixels that a kind was trained with
    "siglip2": np.full((2, 3), 0.5, np.float32),
    "clip": np.array(
        [(0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)], np.float32
    ),
    "dinov2": np.stack([IMAGENET_MEAN, IMAGENET_STD]),
}


class TeacherOutput(NamedTuple):
    """Features of every image, float32; n counts the patches alone.

    Attributes:
      taps_lbnd: unit vectors, the inputs of the tapped layers, in ascending depth.
      pooled_bd: unit vectors: of SigLIP2's pooling head, or the normalised last class token.
      attention_bn: head-averaged weights of the pooling query, or of the class token in the last
        layer; each row sums to 1.
    """

    taps_lbnd: jax.Array
    pooled_bd: jax.Array
    attention_bn: jax.Array


def tapped_layers(depth: int, count: int, interval: float) -> tuple[int, ...]:
    """The layers whose inputs are tapped, ascending: depth - int(i * interval) - 1."""
    return tuple(sorted(depth - int(i * interval) - 1 for i in range(count)))


def preprocess(video_bthwc: jax.Array, size: int, kind: str) -> jax.Array:
    """Turns clips with ImageNet normalisation into the teacher's images.

    Args:
      video_bthwc: float32 clips.
      size: side of the teacher's images; other sizes are resized bicubically.
      kind: of the teacher, one of `KINDS`; its mean and deviation are applied.

    Returns:
      float32 [b*t, size, size, c]; SigLIP2's have values from -1 to 1.
    """
    own_mean, own_std = (v.reshape(1, 1, 1, 3) for v in _PIXELS[kind])
    mean, std = (v.reshape(1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    images_bhwc = rearrange(video_bthwc, "b t h w c -> (b t) h w c")
    if images_bhwc.shape[1:3] != (size, size):
        rows, columns = (cubic_weights(old, size) for old in images_bhwc.shape[1:3])
        images_bhwc = jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, images_bhwc)
    return (images_bhwc * std + mean - own_mean) / own_std


def resample(seen: TeacherOutput, old: int, new: int) -> TeacherOutput:
    """Interpolates what was seen on a grid of `old` places a side linearly to `new` ones."""
    weights = linear_weights(old, new)

    def resize(x_bsd):
        grid_byxd = rearrange(x_bsd, "... (y x) d -> ... y x d", y=old)
        grid_byxd = jnp.einsum("Yy,Xx,...yxd->...YXd", weights, weights, grid_byxd)
        return rearrange(grid_byxd, "... y x d -> ... (y x) d")

    attention_bn = resize(seen.attention_bn[..., None])[..., 0]
    attention_bn = attention_bn / jnp.sum(attention_bn, axis=1, keepdims=True)
    return TeacherOutput(l2_normalize(resize(seen.taps_lbnd)), seen.pooled_bd, attention_bn)


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
        attention = VisionAttention(self.heads, self.dtype, IMAGES, name="attn")
        x_bnd, weights_bqn = attention(x_bnd, query_bnd, weights=True)
        x_bnd = x_bnd.astype(jnp.float32)
        h_bnd = layer_norm(1e-6, self.dtype, "norm")(x_bnd)
        x_bnd = x_bnd + Mlp(self.mlp_width, self.dtype, name="mlp")(h_bnd).astype(jnp.float32)
        return x_bnd[:, 0], weights_bqn[:, 0]


def cut_patches(images_bhwc: jax.Array, patch: int) -> tuple[jax.Array, int, int]:
    """Cuts images into patches, row by row: [b n p]; and the rows and columns of the grid.

    What is left over at the right and at the bottom is dropped, as by a strided convolution.
    """
    rows, columns = (side // patch for side in images_bhwc.shape[1:3])
    images_bhwc = images_bhwc[:, : rows * patch, : columns * patch]
    return patchify(images_bhwc[:, None], patch), rows, columns


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
        """Encodes images as `preprocess` gives them."""
        patches_bnp, rows, columns = cut_patches(images_bhwc, self.patch)
        embed = dense(self.width, (None, "embed"), name="patch_embed", dtype=self.dtype)
        side = self.size // self.patch
        init = logical(nn.initializers.normal(0.02), (None, "embed"))
        table_nd = self.param("position", init, (side * side, self.width), jnp.float32)
        table_nd = resize_table(table_nd, (1, side, side), (1, rows, columns), 0)
        x_bnd = embed(patches_bnp).astype(jnp.float32) + table_nd[None]
        block = VisionBlock(self.heads, self.mlp_width, self.dtype, lead=IMAGES, name="blocks")
        x_bnd, taps_lbnd = run_stack(block, x_bnd, depth=self.depth, taps=self.taps, lead=IMAGES)
        x_bnd = layer_norm(1e-6, self.dtype, "norm")(x_bnd)
        head = AttentionPoolingHead(self.heads, self.mlp_width, self.dtype, name="head")
        pooled_bd, attention_bn = head(x_bnd)
        return TeacherOutput(l2_normalize(taps_lbnd), l2_normalize(pooled_bd), attention_bn)


class ClassTokenTeacher(nn.Module):
    """The vision transformers with a class token: CLIP's and DINOv2's.

    Attributes:
      kind: "clip": a norm before the first layer, no bias of the patches, eps 1e-5; "dinov2": layer
        scale, eps 1e-6.
      mlp_width: of the hidden layer; of each of its two halves if `gated`.
      size: what the position table is built for; images of another size resize the table.
      taps: layers whose inputs are returned, ascending.
      activation: of CLIP's MLPs, one of `layers.ACTIVATIONS`.
      registers: tokens of DINOv2 besides class and patches.
      gated: whether DINOv2's MLP is SwiGLU.
    """

    kind: str
    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    size: int
    taps: Sequence[int] = ()
    activation: str = "gelu"
    registers: int = 0
    gated: bool = False
    dtype: Dtype = jnp.float32

    @property
    def eps(self) -> float:
        """Of all norms."""
        return 1e-5 if self.kind == "clip" else 1e-6

    @nn.compact
    def __call__(self, images_bhwc: jax.Array) -> TeacherOutput:
        """Encodes images as `preprocess` gives them."""
        x_bnd = self._tokens(images_bhwc)
        if self.kind == "clip":
            x_bnd = layer_norm(self.eps, jnp.float32, "pre_norm")(x_bnd)
        block = VisionBlock(
            self.heads,
            self.mlp_width,
            self.dtype,
            eps=self.eps,
            activation=self.activation,
            layer_scale=self.kind == "dinov2",
            gated=self.gated,
            lead=IMAGES,
            name="blocks",
        )
        # The input of the last layer is tapped in any case: the attention comes of it.
        taps = sorted({*self.taps, self.depth - 1})
        x_bnd, taps_lbnd = run_stack(block, x_bnd, depth=self.depth, taps=taps, lead=IMAGES)
        attention_bn = self._last_attention(taps_lbnd[taps.index(self.depth - 1)])
        pooled_bd = layer_norm(self.eps, jnp.float32, "norm")(x_bnd[:, 0])
        taps_lbnd = taps_lbnd[: len(self.taps), :, 1 + self.registers :]
        return TeacherOutput(l2_normalize(taps_lbnd), l2_normalize(pooled_bd), attention_bn)

    def _tokens(self, images_bhwc):
        patches_bnp, rows, columns = cut_patches(images_bhwc, self.patch)
        bias = {"use_bias": self.kind != "clip"}
        embed = dense(self.width, (None, "embed"), name="patch_embed", dtype=self.dtype, **bias)
        x_bnd = embed(patches_bnp).astype(jnp.float32)
        b, d, side = x_bnd.shape[0], self.width, self.size // self.patch
        init = logical(small_normal, (None, "embed"))
        class_d = self.param("class_token", logical(small_normal, ("embed",)), (d,), jnp.float32)
        table_nd = self.param("position", init, (1 + side * side, d), jnp.float32)
        # DINOv2 with registers resizes its table otherwise than DINOv2 without.
        table_nd = resize_table(
            table_nd, (1, side, side), (1, rows, columns), 1, antialias=self.registers > 0
        )
        first_bnd = jnp.broadcast_to((class_d + table_nd[0])[None, None], (b, 1, d))
        parts = [first_bnd, x_bnd + table_nd[None, 1:]]
        if self.registers:
            registers_nd = self.param("registers", init, (self.registers, d), jnp.float32)
            parts.insert(1, jnp.broadcast_to(registers_nd[None], (b, self.registers, d)))
        return jnp.concatenate(parts, axis=1)

    def _last_attention(self, x_bnd):
        # A scanned layer gives nothing but its output, so its first half is computed once more.
        blocks = nn.unbox(self.variables["params"]["blocks"])
        norm, attn = (jax.tree.map(lambda x: x[-1], blocks[name]) for name in ("norm1", "attn"))
        layer = nn.LayerNorm(self.eps, self.dtype, use_fast_variance=False, parent=None)
        h_bnd = layer.apply({"params": norm}, x_bnd)
        attention = VisionAttention(self.heads, self.dtype, IMAGES, parent=None)
        variables = {"params": attn}
        _, weights_bqn = attention.apply(variables, h_bnd, h_bnd[:, :1], weights=True)
        weights_bn = weights_bqn[:, 0, 1 + self.registers :]
        return weights_bn / jnp.sum(weights_bn, axis=1, keepdims=True)


def from_config(config: Any) -> SigLip2 | ClassTokenTeacher:
    """The teacher that a run's config describes."""
    t = config.teacher
    sizes = {
        "width": t.width,
        "depth": t.depth,
        "heads": t.heads,
        "mlp_width": t.mlp_width,
        "patch": t.patch,
        "size": t.train_size,
        "taps": tapped_layers(t.depth, t.taps, t.tap_interval),
        "dtype": jnp.dtype(config.dtype),
    }
    if t.kind == "clip":
        return ClassTokenTeacher("clip", activation=t.activation, **sizes)
    if t.kind == "dinov2":
        return ClassTokenTeacher("dinov2", registers=t.registers, gated=t.gated, **sizes)
    if t.kind == "siglip2":
        return SigLip2(**sizes)
    raise ValueError(f"teacher.kind={t.kind!r} is none of {KINDS}")
