"""Fused attention kernels: cuDNN on NVIDIA GPUs, splash attention on TPUs.

Shape key: b batch, n query tokens, m key tokens (n for local attention), h heads, e head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.models import blockwise_attention
from invnext_jax.models.positions import apply_rotary_tokens_last
from invnext_jax.models.sharding import (
    CLIP_AXES,
    HEAD_AXES,
    SEQUENCE_AXES,
    mesh_axes,
    target_platform,
)

NUM_LANES = 128  # width of a TPU's vector registers
MAX_BLOCK = 768  # largest number of queries or keys of a tile
MAX_HEAD_WIDTH = 128  # widest head that cuDNN supports on every GPU generation


def cudnn_unsupported_reason(q_bnhe: jax.Array, window: int | None = None) -> str:
    """Returns the reason why cuDNN does not support the inputs, or an empty string.

    See `cudnn` for the limit of the window.
    """
    n = q_bnhe.shape[1]
    if q_bnhe.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16, not {q_bnhe.dtype}"
    if q_bnhe.shape[-1] > MAX_HEAD_WIDTH:
        return f"a head of width {q_bnhe.shape[-1]} is wider than {MAX_HEAD_WIDTH}"
    if window is not None and n <= 2 * window:
        return f"the window of {window} tokens on each side covers most of the {n} tokens"
    return ""


def splash_unsupported_reason(q_bnhe: jax.Array) -> str:
    """Returns the reason why splash attention does not support the dtype, or an empty string."""
    if q_bnhe.dtype == jnp.float32 and target_platform() == "tpu":
        return "it rounds float32 products to bfloat16"
    return ""


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning. Only process 0 logs it, and each message is logged only once."""
    if jax.process_index() == 0:
        logging.warning(message)


def cudnn(
    q_bnhe: jax.Array, k_bmhe: jax.Array, v_bmhe: jax.Array, window: int | None = None
) -> jax.Array:
    """Runs cuDNN's fused attention, with heads padded to a width that is a multiple of 8.

    cuDNN supports only causal sliding windows. A two-sided window is computed as a causal window of
    twice the length, with query i shifted to position i + window. The last `window` queries would
    be shifted beyond the end of the sequence, so they are computed without cuDNN. There must be
    more than 2 * `window` tokens.
    """
    n, e = q_bnhe.shape[1], q_bnhe.shape[3]
    spare = -e % 8
    q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, spare),)) for x in (q_bnhe, k_bmhe, v_bmhe))
    attend = functools.partial(jax.nn.dot_product_attention, scale=e**-0.5, implementation="cudnn")
    if window is None:
        return attend(q, k, v)[..., :e]
    shifted = jnp.pad(q[:, : n - window], ((0, 0), (window, 0), (0, 0), (0, 0)))
    y = attend(shifted, k, v, is_causal=True, local_window_size=(2 * window, 0))
    return jnp.concatenate(
        [y[:, window:, :, :e], _attend_last_queries(q_bnhe, k_bmhe, v_bmhe, window)], axis=1
    )


def _attend_last_queries(q_bnhe, k_bnhe, v_bnhe, window):
    """Computes local attention from the last `window` queries to the last 2 * `window` keys."""
    q, k, v = (x[:, -2 * window :] for x in (q_bnhe, k_bnhe, v_bnhe))
    return blockwise_attention.full_attention(q, k, v, window)[:, window:]


def token_shards() -> int:
    """Returns the number of devices over which the tokens of a clip are split."""
    axes = mesh_axes(SEQUENCE_AXES)
    return jax.sharding.get_abstract_mesh().shape[axes[0]] if axes else 1


def splash(
    q_bnhe: jax.Array,
    k_bmhe: jax.Array,
    v_bmhe: jax.Array,
    window: int | None = None,
    theta: float | None = None,
    length: int | None = None,
) -> jax.Array:
    """Runs splash attention on the current mesh; see `attention.attend`."""
    _, n, heads, e = q_bnhe.shape
    mesh, shards = jax.sharding.get_abstract_mesh(), token_shards()
    tokens = mesh_axes(SEQUENCE_AXES)
    (q_bhen, k_bhem, v_bhem), segments = prepare_for_splash(
        q_bnhe, k_bmhe, v_bmhe, window, theta, length, shards
    )
    if split := mesh_axes(HEAD_AXES, heads):
        heads //= mesh.shape[split[0]]
    lengths = (q_bhen.shape[3], k_bhem.shape[3])
    interpret = target_platform() != "tpu"
    kernel = make_splash_kernel(lengths, heads, window, shards, interpret=interpret)
    run = run_splash
    clips, split = mesh_axes(CLIP_AXES, q_bnhe.shape[0]), mesh_axes(HEAD_AXES, q_bnhe.shape[2])
    if clips or split or tokens:
        kernel_tokens = None if window is None else tokens
        kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, P(None, kernel_tokens)))
        segments_spec = None if segments is None else type(segments)(q=P(tokens), kv=P())
        kv_spec = P(clips, split, None, None)
        run = jax.shard_map(
            run,
            in_specs=(kernel_spec, P(clips, split, None, tokens), kv_spec, kv_spec, segments_spec),
            out_specs=P(clips, split, tokens, None),
            check_vma=False,
        )
    y_bhne = run(kernel, q_bhen, k_bhem, v_bhem, segments)
    return y_bhne[:, :, :n, :e].transpose(0, 2, 1, 3)


def make_splash_kernel(
    lengths: tuple[int, int], heads: int, window: int | None, shards: int, *, interpret: bool
) -> splash_kernel.SplashAttentionKernel:
    """Returns the attention kernel for padded sequences with queries split over `shards` devices.

    Args:
      lengths: padded numbers of queries and keys, as in the output of `prepare_for_splash`.
      heads: number of heads on one device.
      window: largest distance between a query and the keys it attends to; None for all keys.
      shards: number of devices that the queries are split over; each device has all keys.
      interpret: whether to interpret the kernel as plain JAX, which works on any device.
    """
    n, m = lengths
    if window is None:  # each shard of the queries has this mask
        mask, n, shards = splash_mask.FullMask((n // shards, m)), n // shards, 1
    else:
        mask = splash_mask.LocalMask((n, m), (window, window), 0, shard_count=shards)
    names = {"q": ("q", "q_dkv", "q_dq"), "kv": ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute")}
    names["kv"] += ("kv_dq",)
    blocks = {"q": splash_block_size(n // shards, window), "kv": splash_block_size(m, window)}
    return splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_kernel.BlockSizes(
            **{f"block_{name}": blocks[axis] for axis in names for name in names[axis]},
            **{f"{x}_layout": splash_kernel.QKVLayout.SEQ_MINOR for x in "qkv"},
        ),
        head_shards=1,
        q_seq_shards=shards,
        interpret=interpret,
    )


def splash_block_size(n: int, window: int | None) -> int:
    """Returns the tile size: the largest that divides `n`, or the smallest for local attention."""
    sizes = range(MAX_BLOCK, 0, -NUM_LANES) if window is None else (NUM_LANES,)
    return next(size for size in sizes if n % size == 0)


def splash_padded_length(n: int, window: int | None, shards: int) -> int:
    """Returns the shortest padded length with tiles of at least 512.

    If padding by at most 1/16 does not reach such tiles, it is the length with the largest tiles.
    """
    step = NUM_LANES * shards
    least = -(-n // step) * step
    if window is not None:
        return least
    lengths = range(least, least * 17 // 16 + 1, step)
    return max(lengths, key=lambda length: min(splash_block_size(length // shards, None), 512))


def run_splash(
    kernel: splash_kernel.SplashAttentionKernel,
    q_bhen: jax.Array,
    k_bhem: jax.Array,
    v_bhem: jax.Array,
    segments: splash_kernel.SegmentIds | None,
) -> jax.Array:
    """Runs the kernel on the arrays that `prepare_for_splash` returns; returns [b h n e]."""
    # The kernel exchanges the last two axes again, so that nothing is moved.
    q, k, v = (x.swapaxes(2, 3) for x in (q_bhen, k_bhem, v_bhem))
    return jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)


def prepare_for_splash(
    q_bnhe: jax.Array,
    k_bmhe: jax.Array,
    v_bmhe: jax.Array,
    window: int | None,
    theta: float | None,
    length: int | None,
    shards: int,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], splash_kernel.SegmentIds | None]:
    """Moves the tokens to the last axis, applies rotary positions and the scale, and pads.

    The tokens are the last axis because the last axis of a TPU's arrays is padded to 128, which
    would double the size of heads with a width of 64. The arguments are those of `attention.attend`
    and the number of shards of the queries.

    Returns:
      The queries [b h e n], keys and values [b h e m], and the segment ids that separate keys from
      padding (None if the keys are not padded). In global attention, queries that are padding
      attend to the keys. In local attention, they attend to padding. In both cases, no row of the
      softmax is empty.
    """
    n, m, e = q_bnhe.shape[1], k_bmhe.shape[1], q_bnhe.shape[3]
    queries = splash_padded_length(n, window, shards)
    keys = queries if n == m else splash_padded_length(m, window, 1)
    width = e if e == NUM_LANES // 2 else -(-e // NUM_LANES) * NUM_LANES
    q_bhen, k_bhem, v_bhem = (x.transpose(0, 2, 3, 1) for x in (q_bnhe, k_bmhe, v_bmhe))
    if theta is not None:
        q_bhen, k_bhem = (apply_rotary_tokens_last(x, theta) for x in (q_bhen, k_bhem))
    q_bhen = (q_bhen.astype(jnp.float32) * e**-0.5).astype(q_bhen.dtype)

    def pad(x, tokens):
        return jnp.pad(x, ((0, 0), (0, 0), (0, width - e), (0, tokens - x.shape[3])))

    padded = (pad(q_bhen, queries), pad(k_bhem, keys), pad(v_bhem, keys))
    length = m if length is None else length
    if keys == length:
        return padded, None
    key_segments = jnp.asarray(np.arange(keys) >= length, jnp.int32)
    query_segments = jnp.zeros(queries, jnp.int32) if window is None else key_segments
    return padded, splash_kernel.SegmentIds(q=query_segments, kv=key_segments)
