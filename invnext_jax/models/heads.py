"""Heads on the encoder that align tapped layers with a teacher, and an attention pool.

Shape key: l taps, b batch, n tokens, d width, h heads, e head width.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.models.attention import attend
from invnext_jax.models.gather import broadcast_leading, gather_rows
from invnext_jax.models.layers import Dtype, ProjectionHead, dense, layer_norm
from invnext_jax.models.positions import Grid, PositionTable
from invnext_jax.models.sharding import replicate_tokens

UNTRAINED_POOL = "the attention pool has its initial values, because no loss trained it"


class AlignHeads(nn.Module):
    """One alignment head for each tapped layer.

    The input of a head is the sum of its layer's visible tokens and learned position embeddings.
    """

    width: int
    table_grid: Grid
    class_tokens: int
    dtype: Dtype

    @nn.compact
    def __call__(self, taps_lbnd: jax.Array, keep_bk: jax.Array, grid: Grid) -> jax.Array:
        """Projects the tapped layers' outputs to unit vectors in the teacher's feature space.

        Args:
          taps_lbnd: outputs of the tapped layers, [l, b, class_tokens + k, d].
          keep_bk: int32 positions of the visible tokens.
          grid: frames, rows and columns of the clip.

        Returns:
          float32 [l b k width].
        """
        c, d = self.class_tokens, taps_lbnd.shape[-1]
        table_nd = PositionTable(d, self.table_grid, c, name="position")(grid)
        position_bkd = gather_rows(table_nd[c:], keep_bk)
        x_lbkd = taps_lbnd[:, :, c:] + broadcast_leading(position_bkd, taps_lbnd.shape[0])
        # Differs from reference: there, all heads read the same layer, or the index is out of
        # range.
        heads = nn.vmap(
            ProjectionHead,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return heads(self.width, True, self.dtype, name="heads")(x_lbkd)


class AttentionPool(nn.Module):
    """Attention pooling with one query, the mean of all tokens (including class tokens)."""

    width: int
    heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        """Pools [b n d] to float32 [b width]."""
        d = x_bnd.shape[-1]
        mean_bnd = jnp.mean(x_bnd.astype(jnp.float32), axis=1, keepdims=True)

        def project(name, tokens_bnd):
            h_bnd = replicate_tokens(layer_norm(1e-5, self.dtype, f"norm_{name}")(tokens_bnd))
            h_bnd = dense(d, ("embed", "heads"), name=name, dtype=self.dtype)(h_bnd)
            return h_bnd.reshape(*h_bnd.shape[:2], self.heads, d // self.heads)

        q_bnhe, k_bnhe, v_bnhe = project("q", mean_bnd), project("k", x_bnd), project("v", x_bnd)
        y_bd = attend(q_bnhe, k_bnhe, v_bnhe).reshape(-1, d)
        out = dense(self.width, ("heads", "embed"), name="proj", dtype=self.dtype)
        return out(y_bd).astype(jnp.float32)


def is_untrained_pool(params: Any) -> bool:
    """Returns whether an attention pool has its initial values.

    A run trains the pool only with `config.loss.align_pooled`. Otherwise all biases are still 0 and
    all scales 1. `params` is None if there is no pool.
    """
    flat = flax.traverse_util.flatten_dict(params or {})
    initial = {"bias": 0.0, "scale": 1.0}
    compared = [(leaf, initial[path[-1]]) for path, leaf in flat.items() if path[-1] in initial]
    return bool(compared) and all(bool((leaf == value).all()) for leaf, value in compared)
