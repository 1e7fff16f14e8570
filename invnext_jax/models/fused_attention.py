"""Fused attention kernels: cuDNN on NVIDIA GPUs, splash attention on TPUs.

Shape key: b batch, n query and key tokens, h heads, e head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from invnext_jax.models import blockwise_attention

LANES = 128  # of a TPU's registers
MOST_WIDTH = 128  # widest head that cuDNN takes on every generation


def cudnn_refusal(q_bnhe: jax.Array) -> str:
    """Why cuDNN cannot take these heads; empty if it can."""
    if q_bnhe.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16, not {q_bnhe.dtype}"
    if q_bnhe.shape[-1] > MOST_WIDTH:
        return f"a head of width {q_bnhe.shape[-1]} is wider than {MOST_WIDTH}"
    return ""


def cudnn(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, window: int | None = None
) -> jax.Array:
    """Fused attention of cuDNN; head widths are padded to a multiple of 8.

    Its sliding window looks back only. A window on both sides is one of twice the length that looks
    back from `window` places further on: query i stands at i + window. The last `window` queries
    would stand beyond the end; they are computed apart.
    """
    n, e = q_bnhe.shape[1], q_bnhe.shape[3]
    if window is not None and n <= 2 * window:
        return blockwise_attention.full_attention(q_bnhe, k_bnhe, v_bnhe, window)
    spare = -e % 8
    q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, spare),)) for x in (q_bnhe, k_bnhe, v_bnhe))
    attend = functools.partial(jax.nn.dot_product_attention, scale=e**-0.5, implementation="cudnn")
    if window is None:
        return attend(q, k, v)[..., :e]
    later = jnp.pad(q[:, : n - window], ((0, 0), (window, 0), (0, 0), (0, 0)))
    y = attend(later, k, v, is_causal=True, local_window_size=(2 * window, 0))
    return jnp.concatenate([y[:, window:, :, :e], _last(q_bnhe, k_bnhe, v_bnhe, window)], axis=1)


def _last(q_bnhe, k_bnhe, v_bnhe, window):
    """Local attention of the last `window` queries, to the last 2 `window` keys."""
    q, k, v = (x[:, -2 * window :] for x in (q_bnhe, k_bnhe, v_bnhe))
    return blockwise_attention.full_attention(q, k, v, window)[:, window:]


def splash_kernel(
    n: int, heads: int, window: int | None, shards: int, *, interpret: bool
) -> splash.SplashAttentionKernel:
    """The kernel for padded sequences whose queries are split over `shards` devices.

    Args:
      n: tokens, as `splash_length` gives them.
      heads: heads of one device.
      window: keys farther away are not seen; None sees all.
      shards: parts of the queries; each device has all keys.
      interpret: whether the kernel runs as plain JAX, on any device.
    """
    if window is None:  # alike for each part of the queries, so it is made for one
        mask, shards = splash_mask.FullMask((n // shards, n)), 1
    else:
        mask = splash_mask.LocalMask((n, n), (window, window), 0, shard_count=shards)
    names = [f"block_{what}" for what in ("q", "q_dkv", "q_dq", "kv_dkv", "kv_dq", "kv")]
    names += ["block_kv_compute", "block_kv_dkv_compute"]
    block = splash_block(mask.shape[0] // shards, window)
    return splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=shards,
        interpret=interpret,
    )


def splash_block(n: int, window: int | None) -> int:
    """The largest tile that divides n tokens of a device; a narrow window wants a small one."""
    sizes = (512, 256, LANES) if window is None else (LANES,)
    return next(size for size in sizes if n % size == 0)


def splash_length(n: int, window: int | None, shards: int) -> int:
    """n, padded so that large tiles divide it where that costs at most a sixteenth more."""
    least = -(-n // (LANES * shards)) * LANES * shards
    if window is not None:
        return least
    lengths = [-(-n // (size * shards)) * size * shards for size in (512, 256)]
    return next((length for length in lengths if length <= least * 17 / 16), least)


def run_splash(
    kernel: splash.SplashAttentionKernel,
    q_bnhe: jax.Array,
    k_bnhe: jax.Array,
    v_bnhe: jax.Array,
    segments: splash.SegmentIds | None,
) -> jax.Array:
    """Runs the kernel on scaled queries; all tokens as padded as the kernel wants."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_bnhe, k_bnhe, v_bnhe))
    y = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
    return y.transpose(0, 2, 1, 3)


def pad_for_splash(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, window: int | None, shards: int
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], splash.SegmentIds | None]:
    """Scales the queries and pads tokens and heads.

    Returns:
      Queries, keys and values; and segments that keep padding and tokens apart, if there is any.
      Padding sees padding, so that no row of the softmax is empty.
    """
    n, e = q_bnhe.shape[1], q_bnhe.shape[3]
    length = splash_length(n, window, shards)
    wide = e if e == LANES // 2 else -(-e // LANES) * LANES
    q_bnhe = (q_bnhe.astype(jnp.float32) * e**-0.5).astype(q_bnhe.dtype)
    pad = ((0, 0), (0, length - n), (0, 0), (0, wide - e))
    padded = tuple(jnp.pad(x, pad) for x in (q_bnhe, k_bnhe, v_bnhe))
    if length == n:
        return padded, None
    place = jnp.asarray(np.arange(length) >= n, jnp.int32)
    return padded, splash.SegmentIds(q=place, kv=place)
