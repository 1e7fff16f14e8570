"""Frozen image teachers: the published image towers of SigLIP2, CLIP and DINOv2.

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
    small_normal,
)
from invnext_jax.models.patches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    clip_grid,
    crop_to_patches,
    patchify,
)
from invnext_jax.models.positions import resize_matrix, resize_table
from invnext_jax.models.scan import scan_blocks, select_tap_layers
from invnext_jax.models.sharding import IMAGE_AXES, with_logical_axes
from invnext_jax.models.vit import VisionAttention, VisionBlock

KINDS = ("siglip2", "clip", "dinov2")
PIXEL_STATS = {  # mean and standard deviation that each kind was trained with
    "siglip2": np.full((2, 3), 0.5, np.float32),
    "clip": np.array(
        [(0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)], np.float32
    ),
    "dinov2": np.stack([IMAGENET_MEAN, IMAGENET_STD]),
}


class TeacherOutput(NamedTuple):
    """Features of images, float32; n is the number of patches.

    Attributes:
      taps_lbnd: inputs of the tapped layers as unit vectors, in order of increasing depth.
      pooled_bd: output of SigLIP2's pooling head, or the class token after the final norm, as unit
        vectors.
      attention_bn: attention to each patch, averaged over heads: from the pooling query, or from
        the class token in the last layer. Each row sums to 1.
      frames_bf: the encoded frames of each clip, int32 [clips, frames]; None for all frames.
    """

    taps_lbnd: jax.Array
    pooled_bd: jax.Array
    attention_bn: jax.Array
    frames_bf: jax.Array | None = None


def preprocess(video_bthwc: jax.Array, size: int | None, kind: str) -> jax.Array:
    """Converts clips that are normalized as for ImageNet to a teacher's input images.

    Args:
      video_bthwc: float32 clips.
      size: height and width of the teacher's images; clips with a different size are resized
        bicubically. None for images with the size of the clips.
      kind: kind of teacher, one of `KINDS`; it determines the mean and standard deviation.

    Returns:
      float32 [b*t, h, w, c]; for SigLIP2 the values are from -1 to 1.
    """
    teacher_mean, teacher_std = (v.reshape(1, 1, 1, 3) for v in PIXEL_STATS[kind])
    mean, std = (v.reshape(1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD))
    images_bhwc = rearrange(video_bthwc, "b t h w c -> (b t) h w c")
    if size is not None and images_bhwc.shape[1:3] != (size, size):
        for axis in (1, 2):
            weights = resize_matrix(images_bhwc.shape[axis], size, "cubic-pytorch")
            images_bhwc = _resize_axis(images_bhwc, weights, axis)
    return (images_bhwc * std + mean - teacher_mean) / teacher_std


def resample_features(features: TeacherOutput, old: int, new: int) -> TeacherOutput:
    """Resizes taps and attention linearly from `old` x `old` to `new` x `new` patches."""
    weights = resize_matrix(old, new, "linear")

    def resize(x_bsd):
        grid_byxd = rearrange(x_bsd, "... (y x) d -> ... y x d", y=old)
        for axis in (-3, -2):
            grid_byxd = _resize_axis(grid_byxd, weights, axis)
        return rearrange(grid_byxd, "... y x d -> ... (y x) d")

    attention_bn = resize(features.attention_bn[..., None])[..., 0]
    attention_bn = attention_bn / jnp.sum(attention_bn, axis=1, keepdims=True)
    taps_lbnd = l2_normalize(resize(features.taps_lbnd))
    return TeacherOutput(taps_lbnd, features.pooled_bd, attention_bn)


def _resize_axis(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Multiplies an axis by a matrix [new old], in float32."""
    # If XLA fuses the transpose into the product, compilation for a GPU fails, because its Triton
    # kernels have no tile for float32 images (H100, jax 0.10.2). The barrier keeps them separate.
    x = jax.lax.optimization_barrier(jnp.moveaxis(x, axis, 0))
    x = jnp.tensordot(weights, x, 1, precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(x, 0, axis)


class AttentionPoolingHead(nn.Module):
    """SigLIP's pooling head: attention from a learned query to all tokens, then an MLP."""

    heads: int
    mlp_width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the pooled feature [b d] and the query's attention weights [b n]."""
        b, _, d = x_bnd.shape
        probe_nd = self.param("probe", nn.initializers.normal(0.02), (1, d), jnp.float32)
        query_bnd = jnp.broadcast_to(probe_nd[None], (b, 1, d))
        attention = VisionAttention(self.heads, self.dtype, IMAGE_AXES, name="attn")
        x_bnd, weights_bqn = attention(x_bnd, query_bnd, weights=True)
        x_bnd = x_bnd.astype(jnp.float32)
        h_bnd = layer_norm(1e-6, self.dtype, "norm")(x_bnd)
        x_bnd = x_bnd + Mlp(self.mlp_width, self.dtype, name="mlp")(h_bnd).astype(jnp.float32)
        return x_bnd[:, 0], weights_bqn[:, 0]


class SigLip2(nn.Module):
    """SigLIP2's vision transformer.

    `size` is the image size of the position table, which is resized for images with a different
    size.
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
        """Encodes images from `preprocess`."""
        video_bthwc = crop_to_patches(images_bhwc, self.patch)[:, None]
        patches_bnp, grid = patchify(video_bthwc, self.patch), clip_grid(video_bthwc, self.patch)
        embed = dense(self.width, (None, "embed"), name="patch_embed", dtype=self.dtype)
        side = self.size // self.patch
        init = with_logical_axes(nn.initializers.normal(0.02), (None, "embed"))
        table_nd = self.param("position", init, (side * side, self.width), jnp.float32)
        table_nd = resize_table(table_nd, (1, side, side), grid, 0)
        x_bnd = embed(patches_bnp).astype(jnp.float32) + table_nd[None]
        block = VisionBlock(
            self.heads, self.mlp_width, self.dtype, leading_axes=IMAGE_AXES, name="blocks"
        )
        x_bnd, taps_lbnd = scan_blocks(
            block, x_bnd, depth=self.depth, taps=self.taps, leading_axes=IMAGE_AXES
        )
        x_bnd = layer_norm(1e-6, self.dtype, "norm")(x_bnd)
        head = AttentionPoolingHead(self.heads, self.mlp_width, self.dtype, name="head")
        pooled_bd, attention_bn = head(x_bnd)
        _sow_states(self, x_bnd, taps_lbnd, pooled_bd)
        return TeacherOutput(l2_normalize(taps_lbnd), l2_normalize(pooled_bd), attention_bn)


class ClassTokenTeacher(nn.Module):
    """The vision transformers of CLIP and DINOv2, both with a class token.

    Attributes:
      kind: "clip" has a norm before the first layer, no bias in the patch embedding, and eps 1e-5;
        "dinov2" has layer scale and eps 1e-6.
      mlp_width: hidden width of the MLPs; if `gated`, the width of each of the two halves.
      size: image size of the position table, which is resized for images with a different size.
      taps: layers whose inputs are returned, ascending.
      activation: activation of CLIP's MLPs, one of `layers.ACTIVATIONS`.
      registers: number of DINOv2's register tokens.
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
        """Epsilon of all norms."""
        return 1e-5 if self.kind == "clip" else 1e-6

    @nn.compact
    def __call__(self, images_bhwc: jax.Array) -> TeacherOutput:
        """Encodes images from `preprocess`."""
        x_bnd = self._embed(images_bhwc)
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
            leading_axes=IMAGE_AXES,
            name="blocks",
        )
        # The input of the last layer is always tapped, because the attention is computed from it.
        taps = sorted({*self.taps, self.depth - 1})
        x_bnd, taps_lbnd = scan_blocks(
            block, x_bnd, depth=self.depth, taps=taps, leading_axes=IMAGE_AXES
        )
        attention_bn = self._last_attention(taps_lbnd[taps.index(self.depth - 1)])
        norm = layer_norm(self.eps, jnp.float32, "norm")
        pooled_bd = norm(x_bnd[:, 0])
        if self.is_mutable_collection("intermediates"):
            index = np.array([taps.index(tap) for tap in self.taps], np.int32)
            tokens_bnd = x_bnd if self.kind == "clip" else norm(x_bnd)
            _sow_states(self, tokens_bnd, taps_lbnd[index], pooled_bd)
        taps_lbnd = taps_lbnd[: len(self.taps), :, 1 + self.registers :]
        return TeacherOutput(l2_normalize(taps_lbnd), l2_normalize(pooled_bd), attention_bn)

    def _embed(self, images_bhwc):
        """Returns the first layer's input: class token, registers, and patches with positions."""
        video_bthwc = crop_to_patches(images_bhwc, self.patch)[:, None]
        patches_bnp, grid = patchify(video_bthwc, self.patch), clip_grid(video_bthwc, self.patch)
        bias = {"use_bias": self.kind != "clip"}
        embed = dense(self.width, (None, "embed"), name="patch_embed", dtype=self.dtype, **bias)
        x_bnd = embed(patches_bnp).astype(jnp.float32)
        b, d, side = x_bnd.shape[0], self.width, self.size // self.patch
        init = with_logical_axes(small_normal, (None, "embed"))
        class_d = self.param(
            "class_token", with_logical_axes(small_normal, ("embed",)), (d,), jnp.float32
        )
        table_nd = self.param("position", init, (1 + side * side, d), jnp.float32)
        # Only DINOv2 with registers resizes its table with antialiasing.
        table_nd = resize_table(table_nd, (1, side, side), grid, 1, antialias=self.registers > 0)
        first_bnd = jnp.broadcast_to((class_d + table_nd[0])[None, None], (b, 1, d))
        parts = [first_bnd, x_bnd + table_nd[None, 1:]]
        if self.registers:
            registers_nd = self.param("registers", init, (self.registers, d), jnp.float32)
            parts.insert(1, jnp.broadcast_to(registers_nd[None], (b, self.registers, d)))
        return jnp.concatenate(parts, axis=1)

    def _last_attention(self, x_bnd):
        """Returns the attention from the class token to the patches in the last layer, [b n]."""
        # The scan returns only the outputs of layers, so this attention is recomputed.
        blocks = nn.unbox(self.variables["params"]["blocks"])
        norm, attn = (jax.tree.map(lambda x: x[-1], blocks[name]) for name in ("norm1", "attn"))
        layer = nn.LayerNorm(self.eps, self.dtype, use_fast_variance=False, parent=None)
        h_bnd = layer.apply({"params": norm}, x_bnd)
        attention = VisionAttention(self.heads, self.dtype, IMAGE_AXES, parent=None)
        variables = {"params": attn}
        _, weights_bqn = attention.apply(variables, h_bnd, h_bnd[:, :1], weights=True)
        weights_bn = weights_bqn[:, 0, 1 + self.registers :]
        return weights_bn / jnp.sum(weights_bn, axis=1, keepdims=True)


def _sow_states(module, tokens_bnd, taps_lbnd, pooled_bd):
    """Stores states in the collection "intermediates", before they are scaled to unit vectors.

    `tokens` is `last_hidden_state` in transformers, with class and register tokens, and `pooled`
    is `pooler_output`.
    """
    for name, value in (("tokens", tokens_bnd), ("taps", taps_lbnd), ("pooled", pooled_bd)):
        module.sow("intermediates", name, value)


def from_config(config: Any) -> SigLip2 | ClassTokenTeacher:
    """Builds the teacher of a run's config."""
    t = config.teacher
    sizes = {
        "width": t.width,
        "depth": t.depth,
        "heads": t.heads,
        "mlp_width": t.mlp_width,
        "patch": t.patch,
        "size": t.train_size,
        "taps": select_tap_layers(t.depth, t.taps, t.tap_interval),
        "dtype": jnp.dtype(config.dtype),
    }
    if t.kind == "clip":
        return ClassTokenTeacher("clip", activation=t.activation, **sizes)
    if t.kind == "dinov2":
        return ClassTokenTeacher("dinov2", registers=t.registers, gated=t.gated, **sizes)
    if t.kind == "siglip2":
        return SigLip2(**sizes)
    raise ValueError(f"teacher.kind={t.kind!r} must be one of {KINDS}")
