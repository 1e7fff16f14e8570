"""Exact attention in plain XLA, with all logits at once or in blocks of queries.

Heads are moved before tokens, so that matrix products need no transposed copy of their operands.
The softmax is normalized after the product with the values, because this divides only n x e numbers
instead of n x m.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width, g blocks of queries,
w queries in a block, s keys that a block attends to.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.models.dot_general import select_precision

MAX_LOGITS = 2**20  # largest number of logits per head that are in memory at once
MASKED_LOGIT = -1e30  # logit of a masked key; its exp is 0


def full_attention(
    q_bnhe: jax.Array,
    k_bmhe: jax.Array,
    v_bmhe: jax.Array,
    window: int | None = None,
    *,
    causal: bool = False,
) -> jax.Array:
    """Computes attention with all n x m logits at once; see `attention.attend`."""
    q, k, v = _scale_queries(q_bnhe), k_bmhe, v_bmhe
    mask_nm = None
    if window is not None or causal:
        distance = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None]
        seen_nm = distance >= 0 if causal else np.ones_like(distance, bool)
        if window is not None:
            seen_nm &= np.abs(distance) <= window
        mask_nm = seen_nm[None, None]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return _softmax_matmul(q, k, v, mask_nm).transpose(0, 2, 1, 3)


def blockwise_attention(q_bnhe: jax.Array, k_bmhe: jax.Array, v_bmhe: jax.Array) -> jax.Array:
    """Computes global attention one block of queries at a time.

    The backward pass recomputes the logits of each block. A block has at most `MAX_LOGITS` logits
    per head, unless it would then have fewer than 16 queries.
    """
    b, n, h, e = q_bnhe.shape
    width = block_length(n, k_bmhe.shape[1])
    blocks = -(-n // width)
    q_bhne, k_bhme, v_bhme = (
        x.transpose(0, 2, 1, 3) for x in (_scale_queries(q_bnhe), k_bmhe, v_bmhe)
    )
    q_bhne = jnp.pad(q_bhne, ((0, 0), (0, 0), (0, blocks * width - n), (0, 0)))
    q_gbhwe = q_bhne.reshape(b, h, blocks, width, e).transpose(2, 0, 1, 3, 4)
    block = jax.checkpoint(
        lambda q_bhwe: _softmax_matmul(q_bhwe, k_bhme, v_bhme), prevent_cse=False
    )
    y_gbhwe = jax.lax.map(block, q_gbhwe)
    return y_gbhwe.transpose(1, 0, 3, 2, 4).reshape(b, blocks * width, h, e)[:, :n]


def block_length(n: int, m: int) -> int:
    """Returns the number of queries in a block of global attention, for n queries and m keys."""
    blocks = -(-n // max(MAX_LOGITS // m, 16))
    return -(-n // blocks)


def sliding_window_attention(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, window: int
) -> jax.Array:
    """Computes local attention in time and memory linear in n.

    Each block of queries attends to its own positions and to `window` positions on each side.
    """
    b, n, h, e = q_bnhe.shape
    blocks = -(-n // window_block_size(window))
    width = -(-n // blocks)  # equal blocks need the least padding
    spare = blocks * width - n

    def split_blocks(x_bnhe, before, after):
        """Returns overlapping blocks [b h g s e] of s = before + width + after positions."""
        total = before + width + after
        x_bhne = x_bnhe.transpose(0, 2, 1, 3)
        x_bhne = jnp.pad(x_bhne, ((0, 0), (0, 0), (before, spare + after + width), (0, 0)))
        parts = []
        for start in range(0, total, width):
            part = x_bhne[:, :, start : start + blocks * width].reshape(b, h, blocks, width, e)
            parts.append(part[:, :, :, : min(width, total - start)])
        return jnp.concatenate(parts, axis=3)

    offset = np.arange(-window, width + window)[None]
    key_gs = width * np.arange(blocks)[:, None] + offset
    mask_gws = (np.abs(np.arange(width)[:, None] - offset) <= window)[None]
    mask_gws = mask_gws & ((key_gs >= 0) & (key_gs < n))[:, None]
    q = split_blocks(_scale_queries(q_bnhe), 0, 0)
    k, v = (split_blocks(x, window, window) for x in (k_bnhe, v_bnhe))
    y_bhne = _softmax_matmul(q, k, v, mask_gws[None, None]).reshape(b, h, blocks * width, e)
    return y_bhne[:, :, :n].transpose(0, 2, 1, 3)


def window_block_size(window: int) -> int:
    """Returns the largest number of queries in a block of local attention."""
    return max(2 * window, 16)


def _scale_queries(q: jax.Array) -> jax.Array:
    return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)


def _softmax_matmul(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: np.ndarray | None = None
) -> jax.Array:
    """Computes softmax(q k^T) v in float32: [... n e], [... m e], [... m e] -> [... n e]."""
    product = functools.partial(
        jnp.einsum, precision=select_precision(q.dtype), preferred_element_type=jnp.float32
    )
    logits = product("...ne,...me->...nm", q, k)
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED_LOGIT)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = product("...nm,...me->...ne", weights.astype(v.dtype), v)
    return (y / total).astype(q.dtype)
