"""Training-free propagation of labels from the first frame of a video to all others.

Each token of a frame takes the labels of the most similar tokens of the context: the first frame
and the frames before it. Sources: Jabri et al., "Space-Time Correspondence as a Contrastive Random
Walk" (NeurIPS 2020); Recurrent Video Masked Autoencoders (arXiv 2512.13684), for the defaults.

Shape key: t frames, h w grid of tokens, n tokens of a frame, q chunks of tokens, m tokens of a
chunk, d width, k labels, c frames of the context, s neighbors.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.models.layers import l2_normalize

MAX_AFFINITIES = 2**26  # similarities that are held in memory at once
MAX_TOKENS = 2**14  # of a frame; memory and time are quadratic in their number
FAR = -1e10  # added to the similarity of tokens that are too far away


@dataclasses.dataclass(frozen=True)
class PropagationOptions:
    """Options of `propagate_labels`.

    Attributes:
      context: number of previous frames in the context, besides the first frame.
      temperature: the labels of a neighbor have the weight exp(cosine similarity / temperature).
      neighbors: number of neighbors of a token.
      radius: neighbors in previous frames are less than this many tokens away. The first frame has
        no limit.
    """

    context: int = 20
    temperature: float = 0.7
    neighbors: int = 7
    radius: float = 20.0


def propagate_labels(
    tokens_tnd: jax.Array,
    labels_nk: jax.Array,
    grid: tuple[int, int],
    options: PropagationOptions,
) -> jax.Array:
    """Propagates the labels of frame 0. The function can be traced.

    Args:
      tokens_tnd: float tokens of all frames, in raster order.
      labels_nk: float32 labels of the tokens of frame 0; any numbers, for example the fraction of a
        token that a mask covers.
      grid: rows and columns of the tokens.
      options: see `PropagationOptions`.

    Returns:
      float32 labels [t n k] of all frames; those of frame 0 are unchanged.
    """
    tokens_tnd = l2_normalize(tokens_tnd, min_length=1e-12)
    near_nn = jnp.asarray(find_near(grid, options.radius))
    context = options.context
    first_cnd = jnp.broadcast_to(tokens_tnd[:1], (context, *tokens_tnd.shape[1:]))
    first_cnk = jnp.broadcast_to(labels_nk[None], (context, *labels_nk.shape))

    def step(carry, tokens_nd):
        previous_cnd, previous_cnk = carry
        keys_cnd = jnp.concatenate([tokens_tnd[:1], previous_cnd])
        values_cnk = jnp.concatenate([labels_nk[None], previous_cnk])
        found_nk = _average_neighbors(tokens_nd, keys_cnd, values_cnk, near_nn, options)
        new_cnd = jnp.concatenate([previous_cnd[1:], tokens_nd[None]])
        new_cnk = jnp.concatenate([previous_cnk[1:], found_nk[None]])
        return (new_cnd, new_cnk), found_nk

    _, found_tnk = jax.lax.scan(step, (first_cnd, first_cnk), tokens_tnd[1:])
    return jnp.concatenate([labels_nk[None], found_tnk])


def find_near(grid: tuple[int, int], radius: float) -> np.ndarray:
    """Returns which pairs of tokens are less than `radius` tokens apart, bool [n n]."""
    rows, columns = grid
    offsets = np.arange(1 - rows, rows)[:, None], np.arange(1 - columns, columns)
    windows = np.lib.stride_tricks.sliding_window_view(np.hypot(*offsets) < radius, grid)
    return windows[::-1, ::-1].reshape(rows * columns, rows * columns)


def _average_neighbors(tokens_nd, keys_cnd, values_cnk, near_nn, options) -> jax.Array:
    """Returns the weighted labels [n k] of the most similar tokens of the context."""
    count, tokens = len(keys_cnd), len(tokens_nd)
    chunks = _count_chunks(tokens, count)
    values_mk = rearrange(values_cnk, "c n k -> (c n) k")
    neighbors = min(options.neighbors, len(values_mk))

    def average(chunk):
        tokens_md, near_mn = chunk
        similarity_mcn = jnp.einsum(
            "md,cnd->mcn", tokens_md, keys_cnd, precision=jax.lax.Precision.HIGHEST
        )
        far_mn = jnp.where(near_mn, 0.0, FAR)
        similarity_mcn = similarity_mcn.at[:, 1:].add(far_mn[:, None])
        best_ms, place_ms = jax.lax.top_k(
            rearrange(similarity_mcn, "m c n -> m (c n)") / options.temperature, neighbors
        )
        weight_ms = jax.nn.softmax(best_ms, axis=-1)
        return jnp.einsum(
            "ms,msk->mk", weight_ms, values_mk[place_ms], precision=jax.lax.Precision.HIGHEST
        )

    parts = (rearrange(x, "(q m) d -> q m d", q=chunks) for x in (tokens_nd, near_nn))
    return rearrange(jax.lax.map(average, tuple(parts)), "q m k -> (q m) k")


def _count_chunks(tokens: int, context: int) -> int:
    """Returns the number of equal chunks into which the tokens are divided to save memory."""
    needed = tokens * tokens * context / MAX_AFFINITIES
    return next(q for q in range(1, tokens + 1) if tokens % q == 0 and (q >= needed or q == tokens))
