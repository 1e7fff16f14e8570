"""Fused attention kernels: cuDNN on NVIDIA GPUs, splash attention on TPUs.

Shape key: b batch, n query and key tokens, h heads, e head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from invnext_jax.models import blockwise_attention

NUM_LANES = 128  # width of a TPU's vector registers
MAX_HEAD_WIDTH = 128  # widest head that cuDNN supports on every GPU generation


def cudnn_unsupported_reason(q_bnhe: jax.Array) -> str:
    """Returns the reason why cuDNN does not support the dtype or head width, or an empty string."""
    if q_bnhe.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16, not {q_bnhe.dtype}"
    if q_bnhe.shape[-1] > MAX_HEAD_WIDTH:
        return f"a head of width {q_bnhe.shape[-1]} is wider than {MAX_HEAD_WIDTH}"
    return ""


def splash_unsupported_reason(q_bnhe: jax.Array) -> str:
    """Returns the reason why splash attention does not support the dtype, or an empty string."""
    if q_bnhe.dtype == jnp.float32 and jax.default_backend() == "tpu":
        return "it rounds float32 products to bfloat16"
    return ""


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning. Only process 0 logs it, and each message is logged only once."""
    if jax.process_index() == 0:
        logging.warning(message)


def cudnn(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, window: int | None = None
) -> jax.Array:
    """Runs cuDNN's fused attention, with heads padded to a width that is a multiple of 8.

    cuDNN supports only causal sliding windows. A two-sided window is computed as a causal window of
    twice the length, with query i shifted to position i + window. The last `window` queries would
    be shifted beyond the end of the sequence, so they are computed without cuDNN.
    """
    n, e = q_bnhe.shape[1], q_bnhe.shape[3]
    if window is not None and n <= 2 * window:
        warn_once(
            "attention: the fused kernel 'cudnn' is not used for some local layers, because the "
            f"window of {window} tokens on each side covers most of the {n} tokens; plain XLA "
            "computes them"
        )
        return blockwise_attention.full_attention(q_bnhe, k_bnhe, v_bnhe, window)
    spare = -e % 8
    q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, spare),)) for x in (q_bnhe, k_bnhe, v_bnhe))
    attend = functools.partial(jax.nn.dot_product_attention, scale=e**-0.5, implementation="cudnn")
    if window is None:
        return attend(q, k, v)[..., :e]
    shifted = jnp.pad(q[:, : n - window], ((0, 0), (window, 0), (0, 0), (0, 0)))
    y = attend(shifted, k, v, is_causal=True, local_window_size=(2 * window, 0))
    return jnp.concatenate(
        [y[:, window:, :, :e], _attend_last_queries(q_bnhe, k_bnhe, v_bnhe, window)], axis=1
    )


def _attend_last_queries(q_bnhe, k_bnhe, v_bnhe, window):
    """Computes local attention from the last `window` queries to the last 2 * `window` keys."""
    q, k, v = (x[:, -2 * window :] for x in (q_bnhe, k_bnhe, v_bnhe))
    return blockwise_attention.full_attention(q, k, v, window)[:, window:]


def make_splash_kernel(
    n: int, heads: int, window: int | None, shards: int, *, interpret: bool
) -> splash.SplashAttentionKernel:
    """Returns the attention kernel for padded sequences with queries split over `shards` devices.

    Args:
      n: padded number of tokens, as returned by `splash_padded_length`.
      heads: number of heads on one device.
      window: largest distance between a query and the keys it attends to; None for all keys.
      shards: number of devices that the queries are split over; each device has all keys.
      interpret: whether to interpret the kernel as plain JAX, which works on any device.
    """
    if window is None:  # each shard of the queries has this mask
        mask, shards = splash_mask.FullMask((n // shards, n)), 1
    else:
        mask = splash_mask.LocalMask((n, n), (window, window), 0, shard_count=shards)
    names = [f"block_{name}" for name in ("q", "q_dkv", "q_dq", "kv_dkv", "kv_dq", "kv")]
    names += ["block_kv_compute", "block_kv_dkv_compute"]
    block = splash_block_size(mask.shape[0] // shards, window)
    return splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=shards,
        interpret=interpret,
    )


def splash_block_size(n: int, window: int | None) -> int:
    """Returns the tile size: the largest that divides `n`, or the smallest for local attention."""
    sizes = (512, 256, NUM_LANES) if window is None else (NUM_LANES,)
    return next(size for size in sizes if n % size == 0)


def splash_padded_length(n: int, window: int | None, shards: int) -> int:
    """Returns the padded length for the largest tiles whose padding adds at most 1/16."""
    least = -(-n // (NUM_LANES * shards)) * NUM_LANES * shards
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
    """Runs the kernel on the arrays that `pad_for_splash` returns."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_bnhe, k_bnhe, v_bnhe))
    y = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
    return y.transpose(0, 2, 1, 3)


def pad_for_splash(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, window: int | None, shards: int
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], splash.SegmentIds | None]:
    """Scales the queries and pads the number of tokens and the head width.

    Returns:
      The queries, keys and values, and the segment ids that separate tokens from padding (None
      without padding). Padding attends to padding, so that no row of the softmax is empty.
    """
    n, e = q_bnhe.shape[1], q_bnhe.shape[3]
    length = splash_padded_length(n, window, shards)
    width = e if e == NUM_LANES // 2 else -(-e // NUM_LANES) * NUM_LANES
    q_bnhe = (q_bnhe.astype(jnp.float32) * e**-0.5).astype(q_bnhe.dtype)
    pad = ((0, 0), (0, length - n), (0, 0), (0, width - e))
    padded = tuple(jnp.pad(x, pad) for x in (q_bnhe, k_bnhe, v_bnhe))
    if length == n:
        return padded, None
    segment = jnp.asarray(np.arange(length) >= n, jnp.int32)
    return padded, splash.SegmentIds(q=segment, kv=segment)
