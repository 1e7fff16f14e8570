"""Scaled dot-product attention: `attend` chooses the kernel.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError
from invnext_jax.models import blockwise_attention, fused_attention
from invnext_jax.models.fused_attention import warn_once
from invnext_jax.models.positions import apply_rotary
from invnext_jax.models.sharding import target_platform

KERNELS = ("auto", "cudnn", "splash", "blockwise", "naive")  # values of `config.attention`
# `with kernel("naive"):` during tracing sets the kernel of every attention layer.
kernel = jax.make_user_context("auto")

_FUSED = {"gpu": "cudnn", "tpu": "splash"}
_BATCH_AXES, _HEAD_AXES, _TOKEN_AXES = (
    ("data", "fsdp"),
    ("tensor",),
    ("sequence",),
)  # mesh axes
_records: list[list["Choice"]] = []  # one list for each active `record_choices`


class Choice(NamedTuple):
    """The kernel of an attention layer.

    Attributes:
      kernel: "cudnn", "splash" or "xla".
      reason: reason why the platform's fused kernel is not used; "" if it is used, if the platform
        has none, or if plain XLA was selected.
      queries: number of queries.
      keys: number of keys.
      heads: number of heads.
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
      causal: whether a query attends only to keys at its own and earlier positions. All logits are
        then computed at once, which is suitable for the short sequences of text models.

    Returns:
      [b n h e] in the dtype of the queries.
    """
    if causal:
        return blockwise_attention.full_attention(q_bnhe, k_bmhe, v_bmhe, window, causal=True)
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
        return _splash_attention(q_bnhe, k_bmhe, v_bmhe, window, theta)
    if theta is not None:
        q_bnhe, k_bmhe = apply_rotary(q_bnhe, theta), apply_rotary(k_bmhe, theta)
    if name == "cudnn":
        return _cudnn_attention(q_bnhe, k_bmhe, v_bmhe, window)
    if kernel.value == "naive":
        return blockwise_attention.full_attention(q_bnhe, k_bmhe, v_bmhe, window)
    return _xla_attention(q_bnhe, k_bmhe, v_bmhe, window, recompute=kernel.value == "blockwise")


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
    if _mesh_axes(_TOKEN_AXES) is None:  # XLA partitions batch and heads
        return run(q_bnhe, k_bmhe, v_bmhe)
    return _shard_over_mesh(run, q_bnhe, k_bmhe, v_bmhe, split_tokens=True)


def _cudnn_attention(q_bnhe, k_bmhe, v_bmhe, window):
    run = functools.partial(fused_attention.cudnn, window=window)
    return _shard_over_mesh(run, q_bnhe, k_bmhe, v_bmhe, split_tokens=window is None)


def _splash_attention(q_bnhe, k_bmhe, v_bmhe, window, theta):
    _, n, heads, e = q_bnhe.shape
    mesh, tokens = jax.sharding.get_abstract_mesh(), _mesh_axes(_TOKEN_AXES)
    shards = mesh.shape[tokens[0]] if tokens else 1
    (q_bhen, k_bhem, v_bhem), segments = fused_attention.prepare_for_splash(
        q_bnhe, k_bmhe, v_bmhe, window, theta, shards
    )
    if split := _mesh_axes(_HEAD_AXES, heads):
        heads //= mesh.shape[split[0]]
    lengths = (q_bhen.shape[3], k_bhem.shape[3])
    interpret = target_platform() != "tpu"
    splash_kernel = fused_attention.make_splash_kernel(
        lengths, heads, window, shards, interpret=interpret
    )
    run = fused_attention.run_splash
    clips, split = _mesh_axes(_BATCH_AXES, q_bnhe.shape[0]), _mesh_axes(_HEAD_AXES, q_bnhe.shape[2])
    if clips or split or tokens:
        kernel_tokens = None if window is None else tokens
        kernel_spec = splash_kernel.manual_sharding_spec(
            NamedSharding(mesh, P(None, kernel_tokens))
        )
        segments_spec = None if segments is None else type(segments)(q=P(tokens), kv=P())
        kv_spec = P(clips, split, None, None)
        run = jax.shard_map(
            run,
            in_specs=(kernel_spec, P(clips, split, None, tokens), kv_spec, kv_spec, segments_spec),
            out_specs=P(clips, split, tokens, None),
            check_vma=False,
        )
    y_bhne = run(splash_kernel, q_bhen, k_bhem, v_bhem, segments)
    return y_bhne[:, :, :n, :e].transpose(0, 2, 1, 3)


def _shard_over_mesh(
    run: Callable[..., jax.Array], q_bnhe, k_bmhe, v_bmhe, *, split_tokens: bool
) -> jax.Array:
    """Runs a kernel that XLA cannot partition in a `shard_map` over clips and heads.

    With `split_tokens`, the queries are also split over devices; each device has all keys.
    """
    n, tokens = q_bnhe.shape[1], _mesh_axes(_TOKEN_AXES)
    if split_tokens and tokens:
        spare = -n % jax.sharding.get_abstract_mesh().shape[tokens[0]]
        q_bnhe = jnp.pad(q_bnhe, ((0, 0), (0, spare), (0, 0), (0, 0)))
    q_spec, kv_spec = _query_and_key_specs(q_bnhe, split_tokens=split_tokens)
    if _is_replicated(q_spec):
        return run(q_bnhe, k_bmhe, v_bmhe)
    specs = (q_spec, kv_spec, kv_spec)
    split = jax.shard_map(run, in_specs=specs, out_specs=q_spec, check_vma=False)
    return split(q_bnhe, k_bmhe, v_bmhe)[:, :n]


def _query_and_key_specs(q_bnhe, *, split_tokens):
    batch, heads = _mesh_axes(_BATCH_AXES, q_bnhe.shape[0]), _mesh_axes(_HEAD_AXES, q_bnhe.shape[2])
    tokens = _mesh_axes(_TOKEN_AXES, q_bnhe.shape[1]) if split_tokens else None
    return P(batch, tokens, heads, None), P(batch, None, heads, None)


def _is_replicated(spec: P) -> bool:
    return all(axes is None for axes in spec)


def _mesh_axes(names: tuple[str, ...], size: int | None = None) -> tuple[str, ...] | None:
    """Returns those mesh axes in `names` that have more than one device in the current mesh.

    Returns None if there is no such axis, or if the number of devices does not divide `size`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return None
    names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    parts = math.prod(mesh.shape[name] for name in names)
    return names if names and (size is None or size % parts == 0) else None
