"""A stack of identical blocks, applied by a scan over their parameters.

Shape key: b batch, n tokens, d width, k taps.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.models.attention import padded_length
from invnext_jax.models.sharding import TOKEN_AXES, LeadingAxes, replicate_tokens, shard_tokens

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def check_config(config: Any) -> None:
    """Checks `config.remat` and `config.scan_unroll`.

    Raises:
      UserError: the policy is unknown, or `config.scan_unroll` is less than 1.
    """
    known = ("none", *REMAT_POLICIES)
    if config.remat not in known:
        raise UserError(f"config.remat={config.remat!r} must be one of {known}")
    if config.scan_unroll < 1:
        raise UserError(f"config.scan_unroll={config.scan_unroll} must be at least 1")


def scan_blocks(
    block: nn.Module,
    x_bnd: jax.Array,
    *,
    depth: int,
    taps: Sequence[int] = (),
    drop_path: float = 0.0,
    remat: str = "none",
    unroll: int = 1,
    leading_axes: LeadingAxes = TOKEN_AXES,
) -> tuple[jax.Array, jax.Array]:
    """Applies `depth` copies of a block by a scan, so that compile time does not grow with depth.

    If the attention kernel needs padded tokens, they are padded once for all layers.

    Args:
      block: module with the signature (x_bnd, index, drop_rate, length) and the attribute `dtype`;
        parameters get a layer axis.
      x_bnd: float32 residual stream.
      depth: number of layers.
      taps: states to return, ascending; state k is the stream after k layers, and state 0 is the
        input.
      drop_path: drop rate of the last layer; the rate increases linearly from 0 in the first layer.
      remat: what the backward pass recomputes: "none", "dots" or "full".
      unroll: number of layers per iteration; larger values avoid copies but take longer to compile.
      leading_axes: logical names of the stream's first two axes; see `sharding`.

    Returns:
      The final stream [b n d] and the tapped states [k b n d].
    """
    length = x_bnd.shape[1]
    spare = padded_length(x_bnd, block.dtype) - length
    x_bnd = jnp.pad(replicate_tokens(x_bnd), ((0, 0), (0, spare), (0, 0)))
    x_bnd = shard_tokens(x_bnd, leading_axes)
    # Each tapped state has a slot. All other states overwrite one extra slot, which is discarded.
    slots = np.full((depth + 1,), len(taps), np.int32)
    slots[list(taps)] = np.arange(len(taps))
    taps_kbnd = jnp.zeros((len(taps) + 1, *x_bnd.shape), x_bnd.dtype).at[slots[0]].set(x_bnd)
    rates = jnp.asarray(np.linspace(0.0, drop_path, depth, dtype=np.float32)) if drop_path else None

    def body(block, carry, layer):
        index, rate, slot = layer
        x_bnd, taps_kbnd = carry
        x_bnd = shard_tokens(block(x_bnd, index, rate, length if spare else None), leading_axes)
        taps_kbnd = jax.lax.dynamic_update_index_in_dim(taps_kbnd, x_bnd, slot, 0)
        return (x_bnd, taps_kbnd if taps else carry[1]), None

    if remat != "none":
        body = nn.remat(body, prevent_cse=False, policy=REMAT_POLICIES[remat])
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "droppath": True},
        length=depth,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    layers = (jnp.arange(depth), rates, jnp.asarray(slots[1:]))
    (x_bnd, taps_kbnd), _ = scan(block, (x_bnd, taps_kbnd), layers)
    x_bnd, taps_kbnd = x_bnd[:, :length], taps_kbnd[: len(taps), :, :length]
    return replicate_tokens(x_bnd), replicate_tokens(taps_kbnd)


def select_tap_layers(depth: int, count: int, interval: float) -> tuple[int, ...]:
    """Returns the sorted layers whose inputs are tapped: depth - int(i * interval) - 1.

    Raises:
      UserError: a layer would be tapped twice or does not exist.
    """
    taps = tuple(sorted(depth - int(i * interval) - 1 for i in range(count)))
    if count > depth:
        raise UserError(f"teacher.taps={count} must not exceed teacher.depth={depth}")
    if count > 1 and (interval < 1 or min(taps) < 0):
        raise UserError(
            f"teacher.tap_interval={interval} does not select {count} different layers of {depth}: "
            f"set it to at least 1 and less than {depth / (count - 1):.3g}, or reduce teacher.taps"
        )
    return taps
