"""Temporal module of Video-Depth-Anything (arXiv 2501.12375, section 3.1).

It attends over time at each position of a feature map. Its output layer is initialized to zero, so
that an untrained module returns its input.

Shape key: b batch, t frames, h w map, c channels, s sequences (batch and positions).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.evaluation.heads.attention_readout import fan_in_normal
from invnext_jax.models.attention import attend
from invnext_jax.models.layers import ACTIVATIONS, Dtype, dense, layer_norm
from invnext_jax.models.positions import interleaved_sincos_table


class TemporalModule(nn.Module):
    """GroupNorm, linear layer, one transformer block over time, linear layer, residual.

    Attributes:
      heads: attention heads.
      groups: groups of the GroupNorm; they must divide the channels.
      dtype: dtype of the matrix products.
    """

    heads: int = 8
    groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bthwc: jax.Array) -> jax.Array:
        """Maps a float32 feature map [b t h w c] to float32 [b t h w c]."""
        b, t, h, w, c = x_bthwc.shape
        norm = nn.GroupNorm(
            self.groups, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm"
        )
        y = norm(rearrange(x_bthwc, "b t h w c -> (b t) h w c"))  # statistics per frame
        y_stc = rearrange(y, "(b t) h w c -> (b h w) t c", t=t).astype(self.dtype)
        y_stc = self._dense(c, "proj_in")(y_stc).astype(jnp.float32)
        for i in range(2):
            norm_stc = layer_norm(1e-5, jnp.float32, f"attention_norm{i}")(y_stc)
            norm_stc = norm_stc + interleaved_sincos_table(c, t)[None]
            attention = TemporalAttention(self.heads, self.dtype, name=f"attention{i}")
            y_stc = y_stc + attention(norm_stc).astype(jnp.float32)
        h_stc = layer_norm(1e-5, self.dtype, "mlp_norm")(y_stc)
        value, gate = jnp.split(self._dense(8 * c, "mlp_in")(h_stc), 2, axis=-1)
        h_stc = self._dense(c, "mlp_out")(value * ACTIVATIONS["gelu"](gate))
        y_stc = (y_stc + h_stc.astype(jnp.float32)).astype(self.dtype)
        zeros = nn.initializers.zeros
        y_stc = dense(c, ("mlp", "embed"), name="proj_out", dtype=self.dtype, init=zeros)(y_stc)
        sizes = {"b": b, "h": h, "w": w}
        y = rearrange(y_stc, "(b h w) t c -> b t h w c", **sizes)
        return x_bthwc + y.astype(jnp.float32)

    def _dense(self, width: int, name: str) -> nn.DenseGeneral:
        return dense(width, ("embed", "mlp"), name=name, dtype=self.dtype, init=fan_in_normal)


class TemporalAttention(nn.Module):
    """Self-attention without biases, except in the output layer.

    Attributes:
      heads: attention heads.
      dtype: dtype of the matrix products.
    """

    heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_stc: jax.Array) -> jax.Array:
        """Maps [s t c] to [s t c]."""
        c = x_stc.shape[-1]

        def project(name):
            layer = dense(
                c,
                ("embed", "heads"),
                name=name,
                dtype=self.dtype,
                use_bias=False,
                init=fan_in_normal,
            )
            return rearrange(layer(x_stc), "s t (h e) -> s t h e", h=self.heads)

        y = rearrange(attend(project("q"), project("k"), project("v")), "s t h e -> s t (h e)")
        return dense(c, ("heads", "embed"), name="out", dtype=self.dtype, init=fan_in_normal)(y)
