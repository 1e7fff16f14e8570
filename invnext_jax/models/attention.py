"""Scaled dot-product attention: `attend` chooses the kernel.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError
from invnext_jax.models import blockwise_attention, fused_attention
from invnext_jax.models.fused_attention import warn_once
from invnext_jax.models.positions import apply_rotary
from invnext_jax.models.sharding import (
    CLIP_AXES,
    HEAD_AXES,
    SEQUENCE_AXES,
    TOKEN_AXES,
    LeadingAxes,
    exchange_heads,
    mesh_axes,
    pad_tokens,
    target_platform,
)

KERNELS = ("auto", "cudnn", "splash", "blockwise", "naive")  # values of `config.attention`
MAX_PADDING = 0.125  # largest padding of a stack of layers, as a fraction of its tokens
# `with kernel("naive"):` during tracing sets the kernel of every attention layer.
kernel = jax.make_user_context("auto")

_FUSED = {"gpu": "cudnn", "tpu": "splash"}
_records: list[list["Choice"]] = []  # one list for each active `record_choices`


class Choice(NamedTuple):
    """The kernel of an attention layer.

    Attributes:
      kernel: "cudnn", "splash" or "xla".
      reason: reason why the platform's fused kernel is not used; "" if it is used, if the platform
        has none, or if plain XLA was selected.
      queries: number of queries.
      keys: number of keys.
      heads: number of heads; those of one device if the devices exchange heads.
      width: width of a head.
      window: largest distance between a query and the keys it attends to; None for all keys.
      dtype: name of the dtype of the queries.
    """

    kernel: str
    reason: str
    queries: int
    keys: int
    heads: int
    width: int
    window: int | None
    dtype: str


@contextlib.contextmanager
def record_choices() -> Iterator[list[Choice]]:
    """Context manager that yields a list of the kernels of all layers traced within it.

    A layer is listed once for each time that it is traced.
    """
    choices: list[Choice] = []
    _records.append(choices)
    try:
        yield choices
    finally:
        _records.remove(choices)


def attend(
    q_bnhe: jax.Array,
    k_bmhe: jax.Array,
    v_bmhe: jax.Array,
    window: int | None = None,
    *,
    theta: float | None = None,
    length: int | None = None,
    leading_axes: LeadingAxes = TOKEN_AXES,
    causal: bool = False,
) -> jax.Array:
    """Computes softmax(q k^T / sqrt(e)) v with the softmax in float32.

    The context variable `kernel` selects the implementation. "cudnn" and "splash" are the fused
    kernels for GPUs and TPUs. "blockwise" and "naive" are plain XLA: "naive" computes all logits at
    once, and "blockwise" computes a long sequence in blocks to save memory. "auto" uses the
    platform's fused kernel if it supports the inputs. Otherwise it uses "blockwise" if there are
    many logits, and "naive" if there are few. Inputs that the selected fused kernel does not
    support, such as the single query of a pooling layer, are always computed by XLA.

    Args:
      q_bnhe: queries.
      k_bmhe: keys.
      v_bmhe: values.
      window: largest distance between a query and the keys it attends to; None for all keys.
      theta: base of the wavelengths of rotary positions, which are applied to the queries and keys;
        None for no rotation, as with causal attention.
      length: number of keys that are not padding, if the tokens are padded to `padded_length`.
        Causal attention ignores it, because no token attends to the padding after it.
      leading_axes: logical axes of b and n.
      causal: whether a query attends only to keys at its own and earlier positions. All logits are
        then computed at once, which is suitable for the short sequences of text models.

    Returns:
      [b n h e] in the dtype of the queries.
    """
    if causal:
        return blockwise_attention.full_attention(q_bnhe, k_bmhe, v_bmhe, window, causal=True)
    run = functools.partial(_attend_locally, window=window, theta=theta, length=length)
    if leading_axes == TOKEN_AXES and (spec := _exchange_spec(q_bnhe)):
        return exchange_heads(run, q_bnhe, k_bmhe, v_bmhe, spec)
    return run(q_bnhe, k_bmhe, v_bmhe)


def _attend_locally(q_bnhe, k_bmhe, v_bmhe, window, theta, length):
    name, reason = choose_kernel(q_bnhe, k_bmhe, window)
    for choices in _records:
        sizes = (q_bnhe.shape[1], *k_bmhe.shape[1:], window, str(q_bnhe.dtype))
        choices.append(Choice(name, reason, *sizes))
    if reason and q_bnhe.shape[1] > 1:
        warn_once(
            f"attention: the fused kernel {_fused_kernel()!r} is not used for some layers, because "
            f"{reason}; plain XLA computes them"
        )
    if name == "splash":
        return fused_attention.splash(q_bnhe, k_bmhe, v_bmhe, window, theta, length)
    if length is not None:  # other kernels need no padding
        k_bmhe, v_bmhe = k_bmhe[:, :length], v_bmhe[:, :length]
    if theta is not None:
        q_bnhe, k_bmhe = apply_rotary(q_bnhe, theta), apply_rotary(k_bmhe, theta)
    if name == "cudnn":
        return _cudnn_attention(q_bnhe, k_bmhe, v_bmhe, window)
    if kernel.value == "naive":
        return blockwise_attention.full_attention(q_bnhe, k_bmhe, v_bmhe, window)
    return _xla_attention(q_bnhe, k_bmhe, v_bmhe, window, recompute=kernel.value == "blockwise")


def padded_length(tokens_bnd: jax.Array, dtype: Any) -> int:
    """Returns the length to which a stack of layers should pad its tokens.

    Splash attention needs whole tiles. Padding all tokens once is faster than padding queries, keys
    and values in every layer. Without splash attention, it is the number of tokens, and also if the
    padding would exceed `MAX_PADDING`, because all other operations then take longer.

    Args:
      tokens_bnd: tokens of a stream.
      dtype: dtype of the attention.
    """
    n = tokens_bnd.shape[1]
    queries = jax.ShapeDtypeStruct((1, n, 1, 1), dtype)
    if choose_kernel(queries, queries)[0] != "splash":
        return n
    padded = fused_attention.splash_padded_length(n, None, fused_attention.token_shards())
    return padded if padded <= n * (1 + MAX_PADDING) else n


def choose_kernel(
    q_bnhe: jax.Array, k_bmhe: jax.Array, window: int | None = None
) -> tuple[str, str]:
    """Returns the fields `kernel` and `reason` of the `Choice` for the given inputs.

    Raises:
      ValueError: the value of the context variable `kernel` is unknown.
    """
    if (kernel.value or "auto") not in KERNELS:
        raise ValueError(f"attention kernel {kernel.value!r} must be one of {KERNELS}")
    fused = _fused_kernel()
    if not fused:
        return "xla", ""
    n, m = q_bnhe.shape[1], k_bmhe.shape[1]
    if n == 1:
        reason = "there is only one query"
    elif window is not None and n != m:
        reason = "local attention needs equal numbers of queries and keys"
    elif fused == "cudnn":
        reason = fused_attention.cudnn_unsupported_reason(q_bnhe, window)
    else:
        reason = fused_attention.splash_unsupported_reason(q_bnhe)
    return ("xla", reason) if reason else (fused, "")


def _fused_kernel() -> str:
    """Returns the selected fused kernel; "" if plain XLA is selected or "auto" finds no kernel."""
    chosen = kernel.value or "auto"
    if chosen == "auto":
        return _FUSED.get(target_platform(), "")
    return chosen if chosen in _FUSED.values() else ""


def check_config(config: Any, platform: str | None = None) -> None:
    """Checks `config.attention`.

    Args:
      config: the run's config.
      platform: the platform of the run, such as "gpu"; None for that of the available devices.

    Raises:
      UserError: the kernel is unknown, or it does not support this device or `config.dtype`.
    """
    if config.attention not in KERNELS:
        raise UserError(f"config.attention={config.attention!r} must be one of {KERNELS}")
    available = platform or jax.default_backend()
    needed = {fused: platform for platform, fused in _FUSED.items()}.get(config.attention)
    if needed and needed != available:
        raise UserError(
            f"config.attention={config.attention!r} needs a {needed.upper()}, and this is a "
            f"{available.upper()}: set it to 'auto'"
        )
    if needed and config.dtype != "bfloat16":
        raise UserError(
            f"config.attention={config.attention!r} needs config.dtype='bfloat16', not "
            f"{config.dtype!r}: set it to 'auto'"
        )


def _xla_attention(q_bnhe, k_bmhe, v_bmhe, window, *, recompute):
    n, m = q_bnhe.shape[1], k_bmhe.shape[1]
    recompute = recompute or n * m > blockwise_attention.MAX_LOGITS
    if (
        window is not None
        and n == m
        and n > 2 * (blockwise_attention.window_block_size(window) + window)
    ):
        run = functools.partial(blockwise_attention.sliding_window_attention, window=window)
        return (jax.checkpoint(run) if recompute else run)(q_bnhe, k_bmhe, v_bmhe)
    if n == 1 or window is not None:
        return blockwise_attention.full_attention(q_bnhe, k_bmhe, v_bmhe, window)
    run = (
        blockwise_attention.blockwise_attention if recompute else blockwise_attention.full_attention
    )
    if mesh_axes(SEQUENCE_AXES) is None:  # XLA partitions batch and heads
        return run(q_bnhe, k_bmhe, v_bmhe)
    return _shard_over_mesh(run, q_bnhe, k_bmhe, v_bmhe, split_tokens=True)


def _cudnn_attention(q_bnhe, k_bmhe, v_bmhe, window):
    run = functools.partial(fused_attention.cudnn, window=window)
    return _shard_over_mesh(run, q_bnhe, k_bmhe, v_bmhe, split_tokens=window is None)


def _exchange_spec(q_bnhe) -> P | None:
    """Returns the mesh axes of the inputs if the devices exchange heads, else None."""
    b, n, heads, _ = q_bnhe.shape
    tokens, (keys,) = mesh_axes(SEQUENCE_AXES), nn.logical_to_mesh_axes(("keys",))
    if n == 1 or not tokens or not keys or not mesh_axes((*HEAD_AXES, *SEQUENCE_AXES), heads):
        return None
    return P(mesh_axes(CLIP_AXES, b), tokens, mesh_axes(HEAD_AXES, heads), None)


def _shard_over_mesh(
    run: Callable[..., jax.Array], q_bnhe, k_bmhe, v_bmhe, *, split_tokens: bool
) -> jax.Array:
    """Runs a kernel that XLA cannot partition in a `shard_map` over clips and heads.

    With `split_tokens`, the queries are also split over devices; each device has all keys.
    """
    n, tokens = q_bnhe.shape[1], mesh_axes(SEQUENCE_AXES)
    if split_tokens and tokens:
        q_bnhe = pad_tokens(q_bnhe, jax.sharding.get_abstract_mesh().shape[tokens[0]])
    q_spec, kv_spec = _query_and_key_specs(q_bnhe, split_tokens=split_tokens)
    if _is_replicated(q_spec):
        return run(q_bnhe, k_bmhe, v_bmhe)
    specs = (q_spec, kv_spec, kv_spec)
    split = jax.shard_map(run, in_specs=specs, out_specs=q_spec, check_vma=False)
    return split(q_bnhe, k_bmhe, v_bmhe)[:, :n]


def _query_and_key_specs(q_bnhe, *, split_tokens):
    batch, heads = mesh_axes(CLIP_AXES, q_bnhe.shape[0]), mesh_axes(HEAD_AXES, q_bnhe.shape[2])
    tokens = mesh_axes(SEQUENCE_AXES, q_bnhe.shape[1]) if split_tokens else None
    return P(batch, tokens, heads, None), P(batch, None, heads, None)


def _is_replicated(spec: P) -> bool:
    return all(axes is None for axes in spec)
