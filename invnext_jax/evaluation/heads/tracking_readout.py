"""Tracking heads: predict the coordinates of queried boxes or points in all frames.

InternVideo-Next tracks boxes as 4DS does (paper appendix A.4, arXiv 2412.15212): the coordinates of
an object in the first frame are embedded as a query token, and one cross-attention layer reads the
tokens of all frames.

Shape key: b batch, t time slots of the encoder, n tokens of a time slot, d width of the tokens,
k queries, c coordinates of a query, g octaves, r tokens of a query, f frames, o outputs of a frame.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from invnext_jax.evaluation.heads.attention_readout import AttentionReadout, fan_in_normal
from invnext_jax.models.layers import ACTIVATIONS, Dtype, dense, small_normal

OCTAVES = 16  # frequencies of the Fourier features


def fourier_features(query_bkc: jax.Array, octaves: int = OCTAVES) -> jax.Array:
    """Returns sin and cos of pi 2^g x for each coordinate x and octave g.

    Args:
      query_bkc: float32 coordinates, usually in [0, 1].
      octaves: number of octaves.

    Returns:
      float32 [b k (2 g c)]: first all sines, then all cosines; octaves before coordinates.
    """
    octave_g = jnp.asarray(2.0 ** np.arange(octaves), jnp.float32)
    x = rearrange(query_bkc, "b k c -> b k 1 c") * rearrange(octave_g, "g -> 1 1 g 1")
    # The product with a power of two and the remainder are exact; the product with pi is not.
    angle = jnp.pi * rearrange(jnp.remainder(x, 2.0), "b k g c -> b k (g c)")
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def pad_queries(queries: Sequence[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacks the queries of several videos, which have different numbers of objects.

    Args:
      queries: float32 [k c] of each video.
      count: number of queries of each video in the result.

    Returns:
      float32 [b count c], padded with zeros, and bool [b count], False for padding.

    Raises:
      ValueError: a video has more queries than `count`.
    """
    largest = max(len(query_kc) for query_kc in queries)
    if largest > count:
        raise ValueError(f"a video has {largest} queries, more than {count=}")
    query_bkc = np.zeros((len(queries), count, queries[0].shape[-1]), np.float32)
    mask_bk = np.zeros((len(queries), count), bool)
    for row, query_kc in enumerate(queries):
        query_bkc[row, : len(query_kc)] = query_kc
        mask_bk[row, : len(query_kc)] = True
    return query_bkc, mask_bk


class TrackingReadout(nn.Module):
    """Fourier features of the queries, an MLP, and the attention readout.

    For boxes, c = 4 coordinates (x0, y0, x1, y1) in [0, 1] and o = 4 outputs in each frame after
    the first. For points, c = 3 coordinates (time, x, y) and o = 2 outputs (x, y) in all frames. To
    predict visibility, add one output, which is a logit.

    Attributes:
      frames: frames f for which coordinates are predicted.
      outputs: outputs o of a frame.
      width: width of the queries in the readout.
      heads: attention heads.
      query_width: width of the MLP on the Fourier features.
      tokens: tokens r of a query; each predicts f / r consecutive frames. 1 for boxes in 4DS.
      dtype: dtype of the matrix products, except the last one.
      grid: see `AttentionReadout`.
    """

    frames: int
    outputs: int = 4
    width: int = 1024
    heads: int = 4
    query_width: int = 512
    tokens: int = 1
    dtype: Dtype = jnp.float32
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x_btnd: jax.Array, query_bkc: jax.Array) -> jax.Array:
        """Tracks the queries. Each result depends only on its own query, so queries can be padded.

        Args:
          x_btnd: float tokens of a frozen encoder, without class tokens.
          query_bkc: float32 coordinates of the queries.

        Returns:
          float32 [b f k o]; no activation function is applied.

        Raises:
          ValueError: the tokens of a query do not divide the frames.
        """
        if self.frames % self.tokens:
            raise ValueError(f"tokens={self.tokens} must divide frames={self.frames}")
        h_bkd = fourier_features(query_bkc)
        h_bkd = self._dense("fc1")(h_bkd)
        h_bkd = self._dense("fc2")(ACTIVATIONS["gelu_tanh"](h_bkd))
        if self.tokens > 1:
            shape = self.tokens, self.query_width
            time_rd = self.param("query_position", small_normal, shape, jnp.float32)
            h_bkrd = repeat(h_bkd, "b k d -> b k r d", r=self.tokens)
            h_bkrd = h_bkrd + rearrange(time_rd, "r d -> 1 1 r d")
            h_bkd = rearrange(h_bkrd, "b k r d -> b (k r) d")
        frames = self.frames // self.tokens
        readout = AttentionReadout(
            frames * self.outputs,
            self.width,
            self.heads,
            dtype=self.dtype,
            grid=self.grid,
            name="readout",
        )
        return rearrange(
            readout(x_btnd, h_bkd),
            "b (k r) (f o) -> b (r f) k o",
            r=self.tokens,
            f=frames,
        )

    def _dense(self, name: str) -> nn.DenseGeneral:
        # float32, because neighboring coordinates would be equal in bfloat16.
        axes = ("embed", "mlp")
        return dense(self.query_width, axes, name=name, dtype=jnp.float32, init=fan_in_normal)
