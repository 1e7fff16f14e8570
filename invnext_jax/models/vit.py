"""Plain transformer blocks of image teachers, text towers, video encoders and V-JEPA's predictor.

Shape key: b batch, n tokens, d width, f MLP width, h heads, e head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.models.attention import attend
from invnext_jax.models.dot_general import select_precision
from invnext_jax.models.layers import Dtype, MergeHeads, Mlp, dense, layer_norm
from invnext_jax.models.patches import Grid
from invnext_jax.models.positions import apply_axial_rotary
from invnext_jax.models.sharding import TOKEN_AXES, LeadingAxes, shard_attention_inputs


class VisionAttention(nn.Module):
    """Multi-head attention with biases, and with a separate input for the queries.

    If `rotary_grid` is the clip's grid, `positions.apply_axial_rotary` rotates queries and keys.
    """

    heads: int
    dtype: Dtype
    leading_axes: LeadingAxes = TOKEN_AXES
    causal: bool = False
    rotary_grid: Grid | None = None

    @nn.compact
    def __call__(
        self,
        x_bnd: jax.Array,
        query_bnd: jax.Array,
        length: int | None = None,
        *,
        weights: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attends from the queries to x.

        Args:
          x_bnd: tokens, which are projected to keys and values.
          query_bnd: any number of tokens, which are projected to queries.
          length: number of tokens of x without padding; see `attention.attend`.
          weights: whether to return the softmax weights [b, queries, n], averaged over heads.

        Returns:
          The output [b, queries, d] in `dtype`, and the weights or None.
        """
        d = x_bnd.shape[-1]

        def project(name, tokens_bnd):
            h_bnd = dense(d, ("embed", "heads"), name=name, dtype=self.dtype)(tokens_bnd)
            return h_bnd.reshape(*h_bnd.shape[:2], self.heads, d // self.heads)

        parts = project("q", query_bnd), project("k", x_bnd), project("v", x_bnd)
        q_bnhe, k_bnhe, v_bnhe = shard_attention_inputs(*parts, self.leading_axes)
        if self.rotary_grid is not None:
            q_bnhe, k_bnhe = (apply_axial_rotary(x, self.rotary_grid) for x in (q_bnhe, k_bnhe))
        y_bnhe = attend(
            q_bnhe,
            k_bnhe,
            v_bnhe,
            length=length,
            leading_axes=self.leading_axes,
            causal=self.causal,
        )
        y_bnd = MergeHeads(d, self.dtype, name="proj")(y_bnhe)
        if not weights:
            return y_bnd, None
        logits = jnp.einsum(
            "bqhe,bkhe->bhqk",
            q_bnhe,
            k_bnhe,
            precision=select_precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return y_bnd, jnp.mean(jax.nn.softmax(logits * (d // self.heads) ** -0.5), axis=1)


class VisionBlock(nn.Module):
    """Pre-norm block with biases.

    Options are layer scale and a gated MLP, as in DINOv2; causal attention, as in the text tower of
    CLIP; and rotary positions, as in V-JEPA 2.
    """

    heads: int
    mlp_width: int
    dtype: Dtype
    eps: float = 1e-6
    activation: str = "gelu_tanh"
    layer_scale: bool = False
    gated: bool = False
    leading_axes: LeadingAxes = TOKEN_AXES
    causal: bool = False
    rotary_grid: Grid | None = None

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
          index: ignored.
          drop_rate: ignored.
          length: number of tokens without padding; see `attention.attend`.
        """
        del index, drop_rate
        h_bnd = layer_norm(self.eps, self.dtype, "norm1")(x_bnd)
        attention = VisionAttention(
            self.heads,
            self.dtype,
            self.leading_axes,
            self.causal,
            self.rotary_grid,
            name="attn",
        )
        h_bnd, _ = attention(h_bnd, h_bnd, length)
        x_bnd = x_bnd + self._apply_layer_scale(h_bnd, "scale1")
        h_bnd = layer_norm(self.eps, self.dtype, "norm2")(x_bnd)
        if self.gated:
            h_bnd = GatedMlp(self.mlp_width, self.dtype, name="mlp")(h_bnd)
        else:
            mlp = Mlp(self.mlp_width, self.dtype, activation=self.activation, name="mlp")
            h_bnd = mlp(h_bnd)
        return x_bnd + self._apply_layer_scale(h_bnd, "scale2")

    def _apply_layer_scale(self, h_bnd: jax.Array, name: str) -> jax.Array:
        h_bnd = h_bnd.astype(jnp.float32)
        if not self.layer_scale:
            return h_bnd
        scale_d = self.param(name, nn.initializers.ones, (h_bnd.shape[-1],), jnp.float32)
        return h_bnd * scale_d[None, None]


class GatedMlp(nn.Module):
    """SwiGLU MLP: fc2(silu(gate(x)) * fc1(x)) with hidden width `mlp_width`."""

    mlp_width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        """Maps [b n d] to [b n d]."""
        gate_bnf, up_bnf = (
            dense(self.mlp_width, ("embed", "mlp"), name=name, dtype=self.dtype)(x_bnd)
            for name in ("gate", "fc1")
        )
        out = dense(x_bnd.shape[-1], ("mlp", "embed"), name="fc2", dtype=self.dtype)
        return out(nn.silu(gate_bnf) * up_bnf)
