"""Cross-attention readout of Scaling 4D Representations (4DS, arXiv 2412.15212).

The depth and tracking heads of InternVideo-Next consist of this block (appendix A.3): one
cross-attention layer from queries, which are learned or computed from an input, to the tokens of
all frames.

Shape key: b batch, t frames, n tokens of a frame, d width of the tokens, q queries, w width of the
readout, h heads, e head width, o outputs of a query.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from invnext_jax.models.attention import attend
from invnext_jax.models.layers import Dtype, Mlp, dense, layer_norm, small_normal
from invnext_jax.models.positions import sincos_table

EPS = 1e-6  # epsilon of the LayerNorms
fan_in_normal = nn.initializers.lecun_normal()


class AttentionReadout(nn.Module):
    """Cross-attention to normalized tokens with temporal position embeddings, and an MLP.

    Attributes:
      outputs: number of outputs o of each query.
      width: width w of the queries.
      heads: number of attention heads.
      learned_queries: number of learned queries. If 0, the queries are an input.
      dtype: dtype of the matrix products, except the last one, which is in float32.
      grid: rows and columns of the tokens of a frame. If given, fixed sin-cos embeddings of the
        time, the row and the column are appended to the tokens, for encoders whose tokens contain
        little about their position.
    """

    outputs: int
    width: int
    heads: int
    learned_queries: int = 0
    dtype: Dtype = jnp.float32
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x_btnd: jax.Array, query_bqd: jax.Array | None = None) -> jax.Array:
        """Computes the outputs of all queries.

        Args:
          x_btnd: float tokens of a frozen encoder. The number of frames t must be the same as at
            initialization.
          query_bqd: float32 queries of any width, or None if the queries are learned.

        Returns:
          float32 [b q o].
        """
        x_btnd = layer_norm(EPS, jnp.float32, "norm")(x_btnd)
        time_td = self.param(
            "temporal_position", small_normal, (x_btnd.shape[1], x_btnd.shape[-1]), jnp.float32
        )
        x_btnd = x_btnd + rearrange(time_td, "t d -> 1 t 1 d")
        x_bnd = rearrange(x_btnd, "b t n d -> b (t n) d")
        if self.grid is not None:
            table_nw = sincos_table(self.width, (x_btnd.shape[1], *self.grid), 0)
            table_bnw = jnp.broadcast_to(table_nw[None], (len(x_bnd), *table_nw.shape))
            x_bnd = jnp.concatenate([x_bnd, table_bnw], axis=-1)
        x_bnd = x_bnd.astype(self.dtype)
        query_bqw = self._queries(query_bqd, len(x_bnd))
        k_bnhe = self._split(self._dense(self.width, "k")(x_bnd))
        v_bnhe = self._split(self._dense(self.width, "v")(x_bnd))
        y_bqhe = attend(self._split(query_bqw.astype(self.dtype)), k_bnhe, v_bnhe)
        y_bqw = self._dense(self.width, "out")(rearrange(y_bqhe, "b q h e -> b q (h e)"))
        z_bqw = query_bqw + y_bqw.astype(jnp.float32)
        h_bqw = layer_norm(EPS, self.dtype, "norm_mlp")(z_bqw)
        h_bqw = Mlp(4 * self.width, self.dtype, fan_in_normal, name="mlp")(h_bqw)
        z_bqw = z_bqw + h_bqw.astype(jnp.float32)
        return dense(
            self.outputs, ("embed", None), name="readout", dtype=jnp.float32, init=fan_in_normal
        )(z_bqw)

    def _queries(self, query_bqd: jax.Array | None, b: int) -> jax.Array:
        """Returns the float32 queries [b q w]."""
        if query_bqd is not None:
            return self._dense(self.width, "q")(query_bqd).astype(jnp.float32)
        shape = self.learned_queries, self.width
        query_qw = self.param("query", small_normal, shape, jnp.float32)
        return repeat(query_qw, "q w -> b q w", b=b)

    def _dense(self, width: int, name: str) -> nn.DenseGeneral:
        return dense(width, ("embed", "heads"), name=name, dtype=self.dtype, init=fan_in_normal)

    def _split(self, x_bnw: jax.Array) -> jax.Array:
        return rearrange(x_bnw, "b n (h e) -> b n h e", h=self.heads)
