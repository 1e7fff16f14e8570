"""Scaled dot-product attention: the one place that chooses a kernel.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError
from invnext_jax.models import blockwise_attention, fused_attention

KERNELS = ("auto", "cudnn", "splash", "blockwise", "naive")  # of `config.attention`
# `with kernel("naive"):` around the tracing chooses for every layer.
kernel = jax.make_user_context("auto")

_FUSED = {"gpu": "cudnn", "tpu": "splash"}
_BATCH, _HEADS, _TOKENS = ("data", "fsdp"), ("tensor",), ("sequence",)  # axes of the mesh


def attend(
    q_bnhe: jax.Array, k_bmhe: jax.Array, v_bmhe: jax.Array, window: int | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(e)) v with the softmax in float32.

    `kernel` says how: "cudnn" and "splash" are the fused kernels of GPUs and TPUs; "blockwise" is
    plain XLA that never holds all logits of a long sequence; "naive" holds them all; "auto" takes
    the platform's fused kernel, else XLA in blocks if the logits are many. Few queries, as in
    pooling, and what a fused kernel does not take go by XLA whatever is asked for.

    Args:
      q_bnhe: queries.
      k_bmhe: keys.
      v_bmhe: values.
      window: keys farther than this many positions from the query are not seen; None sees all.

    Returns:
      [b n h e] in the dtype of the queries.
    """
    chosen = kernel.value or "auto"
    if chosen not in KERNELS:
        raise ValueError(f"attention kernel {chosen!r} is none of {KERNELS}")
    if chosen == "naive":
        return blockwise_attention.full_attention(q_bnhe, k_bmhe, v_bmhe, window)
    if chosen == "auto":
        chosen = _FUSED.get(jax.default_backend(), "auto")
    if chosen in ("cudnn", "splash"):
        why_not = _refusal(chosen, q_bnhe, k_bmhe)
        if not why_not:
            run = {"cudnn": _cudnn, "splash": _splash}[chosen]
            return run(q_bnhe, k_bmhe, v_bmhe, window)
        if q_bnhe.shape[1] > 1:
            _tell(f"attention {q_bnhe.shape}: {chosen} is not used, for {why_not}")
        chosen = "auto"
    return _xla(q_bnhe, k_bmhe, v_bmhe, window, recompute=chosen == "blockwise")


def _refusal(chosen: str, q_bnhe: jax.Array, k_bmhe: jax.Array) -> str:
    """Why a fused kernel cannot be used; empty if it can."""
    if q_bnhe.shape[1] != k_bmhe.shape[1] or q_bnhe.shape[1] == 1:
        return "it takes as many queries as keys"
    return fused_attention.cudnn_refusal(q_bnhe) if chosen == "cudnn" else ""


def check_config(config: Any) -> None:
    """Checks `config.attention`.

    Raises:
      UserError: an unknown kernel, or one that this device or `config.dtype` does not support.
    """
    if config.attention not in KERNELS:
        raise UserError(f"config.attention={config.attention!r} must be one of {KERNELS}")
    platform = {"cudnn": "gpu", "splash": "tpu"}.get(config.attention)
    if platform and platform != jax.default_backend():
        raise UserError(
            f"config.attention={config.attention!r} needs a {platform.upper()}, and this is a "
            f"{jax.default_backend().upper()}: set it to 'auto'"
        )
    if config.attention == "cudnn" and config.dtype != "bfloat16":
        raise UserError("config.attention='cudnn' needs config.dtype='bfloat16'")


@functools.cache
def _tell(sentence: str) -> None:
    logging.info(sentence)


def _xla(q_bnhe, k_bmhe, v_bmhe, window, *, recompute):
    n, m = q_bnhe.shape[1], k_bmhe.shape[1]
    recompute = recompute or n * m > blockwise_attention.CELLS
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
    if _axes(_TOKENS) is None:  # batch and heads are split by the compiler as well
        return run(q_bnhe, k_bmhe, v_bmhe)
    return _over_mesh(run, q_bnhe, k_bmhe, v_bmhe, split_tokens=True)


def _cudnn(q_bnhe, k_bnhe, v_bnhe, window):
    run = functools.partial(fused_attention.cudnn, window=window)
    return _over_mesh(run, q_bnhe, k_bnhe, v_bnhe, split_tokens=window is None)


def _splash(q_bnhe, k_bnhe, v_bnhe, window):
    _, n, heads, e = q_bnhe.shape
    mesh, tokens = jax.sharding.get_abstract_mesh(), _axes(_TOKENS)
    shards = mesh.shape[tokens[0]] if tokens else 1
    (q, k, v), segments = fused_attention.pad_for_splash(q_bnhe, k_bnhe, v_bnhe, window, shards)
    if split := _axes(_HEADS, heads):
        heads //= mesh.shape[split[0]]
    interpret = jax.default_backend() != "tpu"
    made = fused_attention.splash_kernel(q.shape[1], heads, window, shards, interpret=interpret)
    q_spec, kv_spec = _specs(q, split_tokens=True)
    if _is_whole(q_spec):
        return fused_attention.run_splash(made, q, k, v, segments)[:, :n, :, :e]
    made_tokens = None if window is None else tokens
    made_spec = made.manual_sharding_spec(NamedSharding(mesh, P(None, made_tokens)))
    segments_spec = None if segments is None else type(segments)(q=P(tokens), kv=P())
    y = jax.shard_map(
        fused_attention.run_splash,
        in_specs=(made_spec, q_spec, kv_spec, kv_spec, segments_spec),
        out_specs=q_spec,
        check_vma=False,
    )(made, q, k, v, segments)
    return y[:, :n, :, :e]


def _over_mesh(
    run: Callable[..., jax.Array], q_bnhe, k_bmhe, v_bmhe, *, split_tokens: bool
) -> jax.Array:
    """Runs a kernel that the compiler cannot split: each device has its clips and heads.

    With `split_tokens` it also has but a part of the queries, and all keys.
    """
    n, tokens = q_bnhe.shape[1], _axes(_TOKENS)
    if split_tokens and tokens:
        spare = -n % jax.sharding.get_abstract_mesh().shape[tokens[0]]
        q_bnhe = jnp.pad(q_bnhe, ((0, 0), (0, spare), (0, 0), (0, 0)))
    q_spec, kv_spec = _specs(q_bnhe, split_tokens=split_tokens)
    if _is_whole(q_spec):
        return run(q_bnhe, k_bmhe, v_bmhe)
    specs = (q_spec, kv_spec, kv_spec)
    split = jax.shard_map(run, in_specs=specs, out_specs=q_spec, check_vma=False)
    return split(q_bnhe, k_bmhe, v_bmhe)[:, :n]


def _specs(q_bnhe, *, split_tokens):
    batch, heads = _axes(_BATCH, q_bnhe.shape[0]), _axes(_HEADS, q_bnhe.shape[2])
    tokens = _axes(_TOKENS, q_bnhe.shape[1]) if split_tokens else None
    return P(batch, tokens, heads, None), P(batch, None, heads, None)


def _is_whole(spec: P) -> bool:
    return all(axes is None for axes in spec)


def _axes(names: tuple[str, ...], size: int | None = None) -> tuple[str, ...] | None:
    """Those of the current mesh's axes that split something; None if they do not divide `size`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return None
    names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    parts = math.prod(mesh.shape[name] for name in names)
    return names if names and (size is None or size % parts == 0) else None
