"""Exact attention in plain XLA, at once or in blocks that never hold all logits of a long sequence.

Heads stand before tokens, so that each matrix product reads its operands as they lie. Weights stay
unnormalised until they have met the values: dividing n x e numbers is less work than n x m.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width, g blocks of queries,
w queries of a block, s keys that a block sees.
"""

import jax
import jax.numpy as jnp
import numpy as np

CELLS = 2**20  # logits a head that are held at once
HIDDEN = -1e30  # logit of a key that is not seen; exp of it is 0


def full_attention(
    q_bnhe: jax.Array, k_bmhe: jax.Array, v_bmhe: jax.Array, window: int | None = None
) -> jax.Array:
    """Attention that holds all n x m logits; see `attention.attend`."""
    q, k, v = _scaled(q_bnhe), k_bmhe, v_bmhe
    seen_nm = None
    if window is not None:
        distance = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None]
        seen_nm = (np.abs(distance) <= window)[None, None]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    return _weigh(q, k, v, seen_nm).transpose(0, 2, 1, 3)


def blockwise_attention(q_bnhe: jax.Array, k_bmhe: jax.Array, v_bmhe: jax.Array) -> jax.Array:
    """Global attention, one block of queries after the other; each sees all keys.

    The backward pass computes a block's logits again. At most `CELLS` logits a head are held, but
    for a sequence so long that 16 queries make more.
    """
    b, n, h, e = q_bnhe.shape
    blocks = -(-n // max(CELLS // k_bmhe.shape[1], 16))
    width = -(-n // blocks)
    q_bhne, k_bhme, v_bhme = (x.transpose(0, 2, 1, 3) for x in (_scaled(q_bnhe), k_bmhe, v_bmhe))
    q_bhne = jnp.pad(q_bhne, ((0, 0), (0, 0), (0, blocks * width - n), (0, 0)))
    q_gbhwe = q_bhne.reshape(b, h, blocks, width, e).transpose(2, 0, 1, 3, 4)
    block = jax.checkpoint(lambda q_bhwe: _weigh(q_bhwe, k_bhme, v_bhme), prevent_cse=False)
    y_gbhwe = jax.lax.map(block, q_gbhwe)
    return y_gbhwe.transpose(1, 0, 3, 2, 4).reshape(b, blocks * width, h, e)[:, :n]


def sliding_window_attention(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, window: int
) -> jax.Array:
    """Local attention in time and memory linear in n: each block sees itself and what is near."""
    b, n, h, e = q_bnhe.shape
    blocks = -(-n // window_block_size(window))
    width = -(-n // blocks)  # of equal blocks, so that few places stay empty
    spare = blocks * width - n

    def cut(x_bnhe, before, after):
        """[b h g s e]: block i has the s = before + width + after positions round its own."""
        total = before + width + after
        x_bhne = x_bnhe.transpose(0, 2, 1, 3)
        x_bhne = jnp.pad(x_bhne, ((0, 0), (0, 0), (before, spare + after + width), (0, 0)))
        parts = []
        for start in range(0, total, width):
            part = x_bhne[:, :, start : start + blocks * width].reshape(b, h, blocks, width, e)
            parts.append(part[:, :, :, : min(width, total - start)])
        return jnp.concatenate(parts, axis=3)

    near = np.arange(-window, width + window)[None]
    key_gs = width * np.arange(blocks)[:, None] + near
    seen_gws = (np.abs(np.arange(width)[:, None] - near) <= window)[None]
    seen_gws = seen_gws & ((key_gs >= 0) & (key_gs < n))[:, None]
    q = cut(_scaled(q_bnhe), 0, 0)
    k, v = (cut(x, window, window) for x in (k_bnhe, v_bnhe))
    y_bhne = _weigh(q, k, v, seen_gws[None, None]).reshape(b, h, blocks * width, e)
    return y_bhne[:, :, :n].transpose(0, 2, 1, 3)


def window_block_size(window: int) -> int:
    """Queries of a block in local attention, at most."""
    return max(2 * window, 16)


def _scaled(q: jax.Array) -> jax.Array:
    return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)


def _weigh(q: jax.Array, k: jax.Array, v: jax.Array, seen: np.ndarray | None = None) -> jax.Array:
    """Softmax of q k^T in float32, times v: [... n e], [... m e], [... m e] -> [... n e]."""
    logits = jnp.einsum("...ne,...me->...nm", q, k, preferred_element_type=jnp.float32)
    if seen is not None:
        logits = jnp.where(seen, logits, HIDDEN)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = jnp.einsum(
        "...nm,...me->...ne", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (y / total).astype(q.dtype)
