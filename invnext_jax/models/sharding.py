"""Logical axes of parameters ("embed", "mlp") and activations ("batch", "sequence").

`training.mesh` maps logical axes to the axes of a mesh. Without a mesh, the constraints on
activations have no effect. The number of tokens need not be divisible by the mesh size, because the
compiler pads uneven shards.

Shape key: b batch, n tokens or queries, m keys, d width, h heads, e head width.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

LeadingAxes = tuple[str | None, str | None]  # logical names of a token stream's first two axes
# Long streams: clips are split over some mesh axes, their tokens over another.
TOKEN_AXES: LeadingAxes = ("batch", "sequence")
IMAGE_AXES: LeadingAxes = ("images", None)  # many short streams
# Axes of a mesh that split the clips, heads and tokens of attention.
CLIP_AXES, HEAD_AXES, SEQUENCE_AXES = ("data", "fsdp"), ("tensor",), ("sequence",)


class UnconstrainedPartitioned(nn.LogicallyPartitioned):
    """A parameter with logical axis names. Unboxing it adds no sharding constraint.

    `LogicallyPartitioned.unbox` adds a constraint, which fails for axes that are not divisible by
    the mesh size and for kernels that linen flattens. `training.mesh` sets the sharding of all
    parameters instead.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:
        """Returns the value without its axis names."""
        del apply_constraint
        return self.value


def with_logical_axes(
    init: Callable[..., Any], axes: Sequence[str | None]
) -> Callable[..., UnconstrainedPartitioned]:
    """Wraps an initializer so that its result has logical axis names."""

    def init_boxed(*args: Any, **kwargs: Any) -> UnconstrainedPartitioned:
        return UnconstrainedPartitioned(init(*args, **kwargs), tuple(axes))

    return init_boxed


def shard_tokens(x_bnd: jax.Array, leading_axes: LeadingAxes = TOKEN_AXES) -> jax.Array:
    """Shards the clips and tokens of a stream over the devices."""
    return nn.with_logical_constraint(x_bnd, (*leading_axes, None))


def replicate_tokens(x_bnd: jax.Array) -> jax.Array:
    """Replicates the tokens of each clip, so that tokens can be gathered and joined locally.

    Called where a sharded stream starts and ends; each call costs at most one all-gather.
    """
    return nn.with_logical_constraint(x_bnd, (*(None,) * (x_bnd.ndim - 3), "batch", None, None))


def shard_attention_inputs(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, leading_axes: LeadingAxes = TOKEN_AXES
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shards the tokens of the queries.

    The keys and values of long streams are sharded or replicated, see `config.sequence_attention`.
    Those of short streams are not split.
    """
    batch, tokens = leading_axes
    keys = "keys" if leading_axes == TOKEN_AXES else None
    names = ((batch, tokens, "heads", None), *2 * [(batch, keys, "heads", None)])
    parts = zip((q_bnhe, k_bnhe, v_bnhe), names, strict=True)
    return tuple(nn.with_logical_constraint(x, axes) for x, axes in parts)


def exchange_heads(
    run: Callable[..., jax.Array],
    q_bnhe: jax.Array,
    k_bmhe: jax.Array,
    v_bmhe: jax.Array,
    spec: P,
) -> jax.Array:
    """Runs attention on tokens that are split over devices, by splitting the heads instead.

    DeepSpeed Ulysses (arXiv 2309.14509): an all-to-all turns the token shards of queries, keys and
    values into head shards, so that each device has all tokens of its heads. Another all-to-all
    turns the head shards of the output into token shards.

    Args:
      run: computes attention on one device.
      q_bnhe: queries.
      k_bmhe: keys.
      v_bmhe: values.
      spec: mesh axes of all inputs; one axis splits the tokens, whose number need not be divisible.

    Returns:
      [b n h e] with the sharding of the inputs.
    """
    axis, sizes = spec[1], (q_bnhe.shape[1], k_bmhe.shape[1], v_bmhe.shape[1])
    shards = jax.sharding.get_abstract_mesh().shape[axis]
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axis, tiled=True)

    def run_heads(*token_shards: jax.Array) -> jax.Array:
        padded = (exchange(shard, split_axis=2, concat_axis=1) for shard in token_shards)
        y_bnhe = run(*(x[:, :size] for x, size in zip(padded, sizes, strict=True)))
        return exchange(pad_tokens(y_bnhe, shards), split_axis=1, concat_axis=2)

    padded = (pad_tokens(x, shards) for x in (q_bnhe, k_bmhe, v_bmhe))
    mapped = jax.shard_map(run_heads, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return mapped(*padded)[:, : sizes[0]]


def pad_tokens(x_bnhe: jax.Array, shards: int) -> jax.Array:
    """Pads the tokens with zeros to a number that is divisible by `shards`."""
    return jnp.pad(x_bnhe, ((0, 0), (0, -x_bnhe.shape[1] % shards), (0, 0), (0, 0)))


def target_platform() -> str:
    """Returns the platform that traced code is compiled for: "cpu", "gpu" or "tpu".

    It is the platform of the current mesh, whose devices may be described by a topology without
    being available. Without a mesh of devices, it is the default platform of the process.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return getattr(device, "platform", "") or jax.default_backend()  # jax 0.10.0 has no platform


def mesh_axes(names: tuple[str, ...], size: int | None = None) -> tuple[str, ...] | None:
    """Returns those mesh axes in `names` that have more than one device in the current mesh.

    Returns None if there is no such axis, or if the number of devices does not divide `size`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return None
    names = tuple(name for name in names if mesh.shape.get(name, 1) > 1)
    parts = math.prod(mesh.shape[name] for name in names)
    return names if names and (size is None or size % parts == 0) else None
