"""Building blocks: norms, linear layers with logical axes, MLPs, attention, the encoder's block.

The residual stream stays in float32, because in bfloat16 a branch with layer scale 1e-5 would be
rounded away. Drop path is active if and only if a "droppath" random stream is given.

Shape key: b batch, n tokens, d width, f MLP width, h heads, e head width.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models.attention import attend
from invnext_jax.models.dot_general import select_dot_general, select_precision
from invnext_jax.models.gather import unstack
from invnext_jax.models.sharding import (
    shard_attention_inputs,
    target_platform,
    with_logical_axes,
)

Dtype = Any
small_normal = nn.initializers.normal(0.02)
# Saves only the inputs of a function for the backward pass and recomputes the rest. Without this, a
# scan would store the intermediate results of elementwise functions (five for a GELU) for all
# layers. Recomputing them is cheap.
recompute = functools.partial(jax.checkpoint, prevent_cse=False)


def _in_float32(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns an elementwise function that computes in float32 and keeps the dtype of its input.

    In bfloat16, the sums 1 + erf and 1 + tanh lose most of their digits for negative x, and the
    product 1.702 x is rounded before the exponential.
    """
    return recompute(lambda x: function(x.astype(jnp.float32)).astype(x.dtype))


def _gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU with erf, as in the reference.

    `nn.gelu` uses erfc, which takes twice as long on CPUs.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu_tanh": _in_float32(nn.gelu),
    "gelu": _in_float32(_gelu),
    "quick_gelu": _in_float32(lambda x: x * nn.sigmoid(1.702 * x)),
}


def dense(
    features: int | Sequence[int],
    axes: Sequence[str | None],
    *,
    name: str,
    dtype: Dtype,
    use_bias: bool = True,
    init: Callable = small_normal,
    contract: int = 1,
) -> nn.DenseGeneral:
    """Returns a linear layer whose kernel has logical axis names for sharding.

    `dot_general.select_dot_general` selects the matrix product.

    Args:
      features: output size or sizes.
      axes: logical names of the kernel's axes, first the input axes, then the output axes.
      name: name of the layer in the parameter tree.
      dtype: dtype of the matmul.
      use_bias: whether a zero-initialized bias is added.
      init: initializer of the kernel.
      contract: number of trailing input axes that are summed over.
    """
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-contract, 0)),
        use_bias=use_bias,
        dtype=dtype,
        precision=select_precision(dtype),
        kernel_init=with_logical_axes(init, tuple(axes)),
        bias_init=with_logical_axes(nn.initializers.zeros, tuple(axes[contract:])),
        dot_general_cls=select_dot_general,
        name=name,
    )


def scale_kernels(params: Any, gain: float, without: Sequence[str]) -> Any:
    """Multiplies the initial values of all kernels by `gain`.

    The initial standard deviation of 0.02 is suitable for widths near 1000. In a narrow model, it
    makes the outputs of the layers so small that the biases soon dominate.

    Args:
      params: parameter tree.
      gain: factor on the kernels.
      without: path components; kernels whose path contains one of them are not scaled.
    """

    def scale(path, leaf):
        names = {getattr(key, "key", None) for key in path}
        return leaf * gain if "kernel" in names and names.isdisjoint(without) else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def layer_norm(eps: float, dtype: Dtype, name: str, *, bias: bool = True) -> nn.LayerNorm:
    """Returns a LayerNorm with float32 statistics, a scale and, by default, a bias."""
    return nn.LayerNorm(epsilon=eps, use_bias=bias, dtype=dtype, name=name, use_fast_variance=False)


class RMSNorm(nn.Module):
    """RMS norm of the last axis, computed in float32: x / sqrt(mean(x^2) + eps) * scale."""

    dtype: Dtype
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes the last axis of [... d]."""
        scale_d = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)

        @recompute
        def normalize(x, scale_d):
            x = x.astype(jnp.float32)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
            scale = scale_d.reshape((1,) * (x.ndim - 1) + (-1,))
            return (x.astype(self.dtype) * scale).astype(self.dtype)

        return normalize(x, scale_d)


class Mlp(nn.Module):
    """MLP of two linear layers with an activation from `ACTIVATIONS`."""

    mlp_width: int
    dtype: Dtype
    out_init: Callable = small_normal
    activation: str = "gelu_tanh"

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        """Maps [b n d] to [b n d]."""
        h_bnf = dense(self.mlp_width, ("embed", "mlp"), name="fc1", dtype=self.dtype)(x_bnd)
        h_bnf = ACTIVATIONS[self.activation](h_bnf)
        return dense(
            x_bnd.shape[-1], ("mlp", "embed"), name="fc2", dtype=self.dtype, init=self.out_init
        )(h_bnf)


def l2_normalize(x: jax.Array, min_length: float = 0.0) -> jax.Array:
    """Scales the last axis to length 1, in float32.

    With a positive `min_length`, vectors that are shorter are divided by it, so zeros remain zeros.
    """
    x = x.astype(jnp.float32)
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / (jnp.maximum(length, min_length) if min_length else length)


class ProjectionHead(nn.Module):
    """Linear layer, exact GELU, linear layer, LayerNorm (eps 1e-5); optionally L2-normalized."""

    width: int
    normalize: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [... d] to float32 [... width]."""
        x = dense(x.shape[-1], ("embed", "mlp"), name="fc1", dtype=self.dtype)(x)
        x = ACTIVATIONS["gelu"](x)
        x = dense(self.width, ("mlp", "embed"), name="fc2", dtype=self.dtype)(x)
        x = layer_norm(1e-5, jnp.float32, "norm")(x)
        return l2_normalize(x) if self.normalize else x


class MergeHeads(nn.Module):
    """Linear layer from the channels of all heads, with the parameters of `dense`.

    TPUs sum over heads and their channels without joining the two axes. Joining them would copy the
    output of the attention kernel, whose heads come before the tokens.
    """

    features: int
    dtype: Dtype
    out_init: Callable = small_normal

    @nn.compact
    def __call__(self, x_bnhe: jax.Array) -> jax.Array:
        """Maps [b n h e] to [b n features]."""
        shape = (math.prod(x_bnhe.shape[2:]), self.features)
        kernel_init = with_logical_axes(self.out_init, ("heads", "embed"))
        bias_init = with_logical_axes(nn.initializers.zeros, ("embed",))
        kernel = self.param("kernel", kernel_init, shape, jnp.float32)
        bias = self.param("bias", bias_init, shape[1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x_bnhe, kernel, bias, dtype=self.dtype)
        channels = x.shape[2:] if target_platform() == "tpu" else shape[:1]
        x, kernel = x.reshape(*x.shape[:2], *channels), kernel.reshape(*channels, self.features)
        axes = tuple(range(2, x.ndim)), tuple(range(len(channels)))
        precision = select_precision(self.dtype)
        y_bnd = select_dot_general()(x, kernel, (axes, ((), ())), precision=precision)
        return y_bnd + bias[None, None]


class SelfAttention(nn.Module):
    """Self-attention that normalizes q and k over the full width, before splitting the heads."""

    heads: int
    dtype: Dtype
    out_init: Callable = small_normal

    @nn.compact
    def __call__(self, x_bnd: jax.Array, length: int | None = None) -> jax.Array:
        """Maps [b n d] to [b n d]; see `attention.attend` for `length`."""
        b, n, d = x_bnd.shape
        split = (b, n, self.heads, d // self.heads)
        qkv = dense((3, d), ("embed", None, "heads"), name="qkv", dtype=self.dtype, use_bias=False)
        q_bnd, k_bnd, v_bnd = unstack(qkv(x_bnd))
        q_bnd = RMSNorm(self.dtype, name="q_norm")(q_bnd)
        k_bnd = RMSNorm(self.dtype, name="k_norm")(k_bnd)
        parts = shard_attention_inputs(*(part.reshape(split) for part in (q_bnd, k_bnd, v_bnd)))
        y_bnhe = attend(*parts, length=length)
        return MergeHeads(d, self.dtype, self.out_init, name="proj")(y_bnhe)


class Block(nn.Module):
    """Pre-norm transformer block of the video encoder (RMSNorm, q/k norm, layer scale).

    The initial standard deviation of output projections is 0.02 / sqrt(2 (index + 1)).
    """

    heads: int
    mlp_width: int
    layer_scale: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x_bnd: jax.Array,
        index: jax.Array,
        drop_rate: jax.Array | None,
        length: int | None = None,
    ) -> jax.Array:
        """Adds attention and MLP to the float32 residual stream.

        Args:
          x_bnd: residual stream, float32.
          index: int32 scalar, index of the layer.
          drop_rate: float32 scalar, the probability of dropping a branch of a sample; None for 0.
          length: number of tokens without padding; see `attention.attend`.
        """

        def scaled(key, shape, dtype):
            return small_normal(key, shape, dtype) / jnp.sqrt(2.0 * (index + 1)).astype(dtype)

        h_bnd = RMSNorm(self.dtype, name="norm1")(x_bnd)
        h_bnd = SelfAttention(self.heads, self.dtype, scaled, name="attn")(h_bnd, length)
        x_bnd = x_bnd + self._scale_and_drop_path(h_bnd, "scale1", drop_rate)
        h_bnd = RMSNorm(self.dtype, name="norm2")(x_bnd)
        h_bnd = Mlp(self.mlp_width, self.dtype, scaled, name="mlp")(h_bnd)
        return x_bnd + self._scale_and_drop_path(h_bnd, "scale2", drop_rate)

    def _scale_and_drop_path(
        self, h_bnd: jax.Array, name: str, drop_rate: jax.Array | None
    ) -> jax.Array:
        """Applies layer scale and drop path to the output of a branch."""
        init = nn.initializers.constant(self.layer_scale)
        scale_d = self.param(name, init, (h_bnd.shape[-1],), jnp.float32)
        h_bnd = h_bnd.astype(jnp.float32) * scale_d[None, None]
        if drop_rate is None or not self.has_rng("droppath"):
            return h_bnd
        keep = 1.0 - drop_rate
        kept = jax.random.bernoulli(self.make_rng("droppath"), keep, (h_bnd.shape[0], 1, 1))
        return h_bnd * jnp.where(kept, 1.0 / keep, 0.0)


def check_heads(config: Any, section: str) -> None:
    """Checks that the width of `config.encoder` or `config.predictor` is divisible by its heads.

    Raises:
      UserError: the width is not divisible by the number of heads.
    """
    width, heads = config[section].width, config[section].heads
    if width % heads:
        raise UserError(
            f"config.{section}.width={width} must be divisible by {section}.heads={heads}"
        )
