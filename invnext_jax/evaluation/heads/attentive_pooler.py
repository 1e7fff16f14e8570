"""Attentive probes: poolers with cross-attention over all tokens, and their linear classifiers.

`MeanQueryPooler` is the head of InternVideo-Next (appendix A.2): the query is the mean token.
`LearnedQueryPooler` is the head of V-JEPA 2 (arXiv 2506.09985, appendix): learned queries after
several self-attention blocks. `AttentiveClassifier` adds a classifier to either of them.

Shape key: b batch, n tokens, d width, q queries, h heads, e head width, k classes.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from invnext_jax.models.attention import attend
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import Dtype, Mlp, dense, layer_norm, small_normal

VJEPA2_EPS = 1e-6  # epsilon of all LayerNorms


class MeanQueryPooler(nn.Module):
    """Cross-attention with three LayerNorms, whose only query is the mean of all tokens.

    Attributes:
      width: width of the output.
      heads: attention heads.
      mlp: whether an MLP with a residual connection follows the attention, as in InternVideo2's
        variant of the head.
      dtype: dtype of the matrix products.
    """

    width: int
    heads: int = 16
    mlp: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        """Pools tokens [b n d] to float32 [b 1 width]."""
        z_bd = AttentionPool(self.width, self.heads, self.dtype, name="attention")(x_bnd)
        if self.mlp:
            branch = Mlp(4 * self.width, self.dtype, activation="gelu", name="mlp")
            z_bd = z_bd + branch(rearrange(z_bd, "b d -> b 1 d"))[:, 0].astype(jnp.float32)
        return rearrange(z_bd, "b d -> b 1 d")


class LearnedQueryPooler(nn.Module):
    """Self-attention blocks on the tokens, then one cross-attention block with learned queries.

    The MLPs are four times as wide as the tokens, and the cross-attention has no output
    projection, as in the released probe.

    Attributes:
      queries: number of learned queries.
      blocks: number of self-attention blocks; the released probe has 3.
      heads: attention heads.
      dtype: dtype of the matrix products.
    """

    queries: int = 1
    blocks: int = 3
    heads: int = 16
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> jax.Array:
        """Pools tokens [b n d] to float32 [b q d]."""
        b, _, d = x_bnd.shape
        x_bnd = x_bnd.astype(jnp.float32)
        for i in range(self.blocks):
            block = PoolerBlock(self.heads, i + 1, self.dtype, name=f"block{i}")
            x_bnd = block(x_bnd)
        query_qd = self.param("query", small_normal, (self.queries, d), jnp.float32)
        last = PoolerBlock(self.heads, self.blocks + 1, self.dtype, name="cross_block")
        return last(x_bnd, repeat(query_qd, "q d -> b q d", b=b))


class PoolerBlock(nn.Module):
    """Pre-norm transformer block of `LearnedQueryPooler`: self-attention or cross-attention.

    Attributes:
      heads: attention heads.
      number: position in the pooler, from 1. The kernels of output layers are initialized with the
        standard deviation 0.02 / sqrt(number).
      dtype: dtype of the matrix products.
    """

    heads: int
    number: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bnd: jax.Array, query_bqd: jax.Array | None = None) -> jax.Array:
        """Adds attention and an MLP to a residual stream.

        Args:
          x_bnd: float32 tokens. Keys and values are computed from the normalized tokens.
          query_bqd: float32 queries, which are not normalized; None for self-attention.

        Returns:
          The residual stream of the tokens [b n d], or of the queries [b q d] if they are given.
        """
        d = x_bnd.shape[-1]
        out_init = nn.initializers.normal(0.02 * self.number**-0.5)
        norm_bnd = layer_norm(VJEPA2_EPS, self.dtype, "norm1")(x_bnd)
        stream = x_bnd if query_bqd is None else query_bqd

        def project(name, tokens):
            tokens = dense(d, ("embed", "heads"), name=name, dtype=self.dtype)(tokens)
            return rearrange(tokens, "b n (h e) -> b n h e", h=self.heads)

        q_bqhe = project("q", norm_bnd if query_bqd is None else query_bqd)
        y_bqhe = attend(q_bqhe, project("k", norm_bnd), project("v", norm_bnd))
        y_bqd = rearrange(y_bqhe, "b q h e -> b q (h e)")
        if query_bqd is None:
            out = dense(d, ("heads", "embed"), name="out", dtype=self.dtype, init=out_init)
            y_bqd = out(y_bqd)
        stream = stream + y_bqd.astype(jnp.float32)
        h_bqd = layer_norm(VJEPA2_EPS, self.dtype, "norm2")(stream)
        h_bqd = Mlp(4 * d, self.dtype, out_init, "gelu", name="mlp")(h_bqd)
        return stream + h_bqd.astype(jnp.float32)


class AttentiveClassifier(nn.Module):
    """A pooler and one linear classifier for each task.

    If the pooler has one query, all classifiers read it. Otherwise classifier i reads query i.

    Attributes:
      pooler: a module that maps tokens [b n d] to [b q width].
      classes: number of classes of each task.
      norm: whether a LayerNorm comes before the classifiers, as in InternVideo-Next's head.
    """

    pooler: nn.Module
    classes: Sequence[int]
    norm: bool = True

    @nn.compact
    def __call__(self, x_bnd: jax.Array) -> list[jax.Array]:
        """Returns float32 logits [b k] of each task.

        Raises:
          ValueError: the number of queries is neither 1 nor the number of tasks.
        """
        z_bqd = self.pooler(x_bnd)
        if z_bqd.shape[1] not in (1, len(self.classes)):
            raise ValueError(
                f"the pooler has {z_bqd.shape[1]} queries, but must have 1 or "
                f"{len(self.classes)}, the number of tasks"
            )
        if self.norm:
            z_bqd = layer_norm(1e-5, jnp.float32, "norm")(z_bqd)
        shared = z_bqd.shape[1] == 1
        return [
            dense(k, ("embed", None), name=f"classifier{i}", dtype=jnp.float32)(
                z_bqd[:, 0 if shared else i]
            )
            for i, k in enumerate(self.classes)
        ]


class SeparateHeads(nn.Module):
    """A separate `AttentiveClassifier` for each task.

    Attributes:
      heads: the classifiers, each with one task.
    """

    heads: Sequence[AttentiveClassifier]

    def __call__(self, x_bnd: jax.Array) -> list[jax.Array]:
        """Returns float32 logits [b k] of each task."""
        return [logits for head in self.heads for logits in head(x_bnd)]
