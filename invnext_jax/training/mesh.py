"""The device mesh, the table of logical axes, and where arrays lie on the devices.

Model code names what a dimension *is* ("embed", "heads"); this file alone says which mesh axis it
is split over. Shapes: b batch.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")

# Logical axis -> mesh axes; a logical axis that is not named here is replicated.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("sequence", "sequence"),
    ("images", ("data", "fsdp", "sequence")),
    ("layers", None),
)


def make_mesh(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes the mesh of `config`'s axis sizes over `devices` (default: all).

    Raises:
        UserError: more than one size is -1, a size is 0 or less, or the sizes do not make up the
            number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: int(config[axis]) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"config.mesh ({shown}): each size must be at least 1, or -1 for the rest")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh ({shown}): only one size may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"config.mesh ({shown}) does not make up the {len(devices)} devices at hand: "
            "set one size to -1, or sizes whose product is the number of devices"
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that the batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(abstract: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of abstract arrays, some of them boxed with their logical axes.

    Args:
        abstract: tree of `jax.ShapeDtypeStruct`, bare or in `nn.LogicallyPartitioned`.
        mesh: the mesh of `make_mesh`.

    Returns:
        A tree of `NamedSharding` of the unboxed structure. A dimension that does not divide by its
        mesh axes is replicated.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(abstract), RULES)

    def place(leaf: jax.ShapeDtypeStruct, spec: P) -> NamedSharding:
        axes = [
            names if size % _parts(names, mesh) == 0 else None
            for size, names in zip(leaf.shape, tuple(spec), strict=False)
        ]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(place, unbox(abstract), specs)


def unbox(tree: Any) -> Any:
    """Strips the boxes of logical axes, without the constraints that linen's own `unbox` adds."""

    def strip(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf

    return jax.tree.map(strip, tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


@contextlib.contextmanager
def mesh_rules(mesh: Mesh) -> Iterator[None]:
    """While a function is traced in here, its logical constraints mean this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def _parts(names: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    if names is None:
        return 1
    names = (names,) if isinstance(names, str) else names
    return math.prod(mesh.shape[name] for name in names)


def abstract_arrays(abstract: Any, mesh: Mesh) -> Any:
    """The unboxed tree of `jax.ShapeDtypeStruct`, each with its sharding."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(abstract),
        shardings(abstract, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of scalars and of whatever each device holds in full."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch [b ...]: the first dimension over the data and fsdp axes."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's part of a batch, arrays [b/processes ...], on the mesh as [b ...]."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def make_root_key(seed: int, mesh: Mesh) -> jax.Array:
    """The run's PRNG key, on every device of every process."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def put_tree(host: Any, abstract: Any) -> Any:
    """Puts a host tree, the same on every process, on the devices.

    Args:
        host: tree of numpy or jax arrays.
        abstract: tree of `jax.ShapeDtypeStruct` with shardings, of the same structure and shapes.

    Returns:
        The tree of global arrays in the abstract dtypes.

    Raises:
        ValueError: the structures or shapes differ.
    """

    def put(leaf: Any, target: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.asarray(leaf, target.dtype)
        if array.shape != target.shape:
            raise ValueError(
                f"cannot put an array of shape {array.shape} where {target.shape} is due"
            )
        return jax.make_array_from_callback(array.shape, target.sharding, lambda part: array[part])

    return jax.tree.map(put, host, abstract)
