"""The device mesh, the sharding rules for logical axes, and transfers of arrays to devices.

Model code specifies the logical axis of each dimension ("embed", "heads"). `RULES` is the only
place that maps logical axes to mesh axes.

Shape key: b batch.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)

# Maps logical axes to mesh axes. Logical axes that are not listed are replicated.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("sequence", "sequence"),
    ("images", ("data", "fsdp", "sequence")),
    ("layers", None),
)
# Further rules for each value of `config.sequence_attention`.
SEQUENCE_ATTENTION = {"gather": (), "all_to_all": (("keys", "sequence"),)}


def make_mesh(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes a mesh with the axis sizes in `config.mesh`. Uses all devices by default.

    Raises:
      UserError: more than one size is -1, a size is 0 or below -1, or the product of the sizes is
        not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(
        _mesh_sizes(config, len(devices)), AXES, axis_types=_AXIS_TYPES, devices=devices
    )


def make_abstract_mesh(config: ml_collections.ConfigDict, devices: int) -> AbstractMesh:
    """Makes a mesh of any number of devices, which can be used for shapes only.

    Raises:
      UserError: as in `make_mesh`.
    """
    return AbstractMesh(_mesh_sizes(config, devices), AXES, axis_types=_AXIS_TYPES)


def _mesh_sizes(config: ml_collections.ConfigDict, devices: int) -> tuple[int, ...]:
    """Returns the sizes of `AXES` for a number of devices."""
    sizes = {axis: int(config[axis]) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"config.mesh ({shown}): each size must be at least 1, or -1 for the rest")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh ({shown}): only one size may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (not free and fixed != devices):
        raise UserError(
            f"config.mesh ({shown}) does not match the {devices} available devices: set one "
            "size to -1, or choose sizes whose product is the number of devices"
        )
    if free:
        sizes[free[0]] = devices // fixed
    return tuple(sizes.values())


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards that the batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the shardings of a tree of abstract arrays.

    Args:
      abstract: tree of `jax.ShapeDtypeStruct`. Leaves in `nn.LogicallyPartitioned` boxes have
          logical axes; the others are replicated.
      mesh: the output of `make_mesh`.

    Returns:
      A tree of `NamedSharding` without boxes. A dimension that is not divisible by
      the size of its mesh axes is replicated.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(abstract), RULES)

    def leaf_sharding(leaf: jax.ShapeDtypeStruct, spec: P) -> NamedSharding:
        axes = [
            names if size % _axis_size(names, mesh) == 0 else None
            for size, names in zip(leaf.shape, tuple(spec), strict=False)
        ]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(leaf_sharding, unbox(abstract), specs)


def unbox(tree: Any) -> Any:
    """Removes logical-axis boxes without adding sharding constraints, unlike `nn.unbox`."""

    def strip(leaf: Any) -> Any:
        return leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf

    return jax.tree.map(strip, tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


@contextlib.contextmanager
def mesh_rules(mesh: Mesh, sequence_attention: str = "gather") -> Iterator[None]:
    """Context manager in which traced code maps logical sharding constraints to `mesh`.

    Args:
      mesh: the mesh.
      sequence_attention: `config.sequence_attention`, a key of `SEQUENCE_ATTENTION`.
    """
    rules = RULES + SEQUENCE_ATTENTION[sequence_attention]
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def _axis_size(names: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of shards along the named mesh axes."""
    if names is None:
        return 1
    names = (names,) if isinstance(names, str) else names
    return math.prod(mesh.shape[name] for name in names)


def abstract_arrays(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns the unboxed tree with leaves of type `jax.ShapeDtypeStruct` that have shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(abstract),
        shardings(abstract, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits a batch [b ...] along b over the mesh axes data and fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def batch_positions(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the positions in a batch of the clips that this process loads, in ascending order.

    A process loads the shards of its devices. `jax.make_mesh` may reorder devices, so the positions
    are not always consecutive. Processes whose devices have the same shard load the same clips.
    This happens if the axes tensor and sequence extend over several hosts.
    """
    index_map = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return sorted({row for (part,) in index_map.values() for row in _range(part, batch_size)})


@functools.cache
def shares_shards(mesh: Mesh) -> bool:
    """Returns whether devices of different processes have the same shard of the batch."""
    shards = batch_shards(mesh)
    holders = {}
    for device, (part,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        holders.setdefault(_range(part, shards), set()).add(device.process_index)
    return any(len(processes) > 1 for processes in holders.values())


@functools.cache
def loads_first_copy(mesh: Mesh) -> bool:
    """Returns whether this process has a device with the first copy of a shard of the batch."""
    first = mesh.devices[:, :, 0, 0].flat  # see `AXES`
    return any(device.process_index == jax.process_index() for device in first)


def _range(part: slice, size: int) -> range:
    return range(*part.indices(size))


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """Makes global arrays [b ...] from the clips that the processes have loaded.

    Args:
      batch: arrays whose rows are the clips at `batch_positions`.
      mesh: the run's mesh.
      batch_size: number of clips in the whole batch, b. None if every process has all of them.
    """
    sharding = batch_sharding(mesh)
    arrays = {
        name: jax.make_array_from_process_local_data(
            sharding, array, (batch_size or len(array), *array.shape[1:])
        )
        for name, array in batch.items()
    }
    if not shares_shards(mesh):
        return arrays
    # Copies of a shard may differ, because one process may have replaced a clip that it could not
    # read in time while others have read it.
    arrays = _make_take_first_copy(mesh)(arrays)
    # On CPU devices, two concurrent computations can deadlock.
    if mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(arrays)
    return arrays


@functools.cache
def _make_take_first_copy(mesh: Mesh) -> Callable[[Any], Any]:
    """Makes a function that copies each shard's rows from its first device to its other devices."""

    def take_first(x: jax.Array) -> jax.Array:
        is_first = (jax.lax.axis_index("tensor") == 0) & (jax.lax.axis_index("sequence") == 0)
        return jax.lax.psum(jnp.where(is_first, x, jnp.zeros_like(x)), ("tensor", "sequence"))

    spec = batch_sharding(mesh).spec
    mapped = jax.shard_map(
        lambda tree: jax.tree.map(take_first, tree),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def replicate(host: Any, mesh: Mesh) -> Any:
    """Makes replicated global arrays from a host tree that is the same on every process."""
    sharding = replicated(mesh)

    def put(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, host)


def make_root_key(seed: int, mesh: Mesh) -> jax.Array:
    """Returns the PRNG key of a run, replicated over all devices of all processes."""
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def shard_tree(host: Any, abstract: Any) -> Any:
    """Makes global arrays from a tree of host arrays that is the same on all processes.

    Args:
      host: tree of numpy or jax arrays.
      abstract: tree of `jax.ShapeDtypeStruct` with shardings; has the structure and shapes of
        `host`.

    Returns:
      The tree of global arrays with the dtypes of `abstract`.

    Raises:
      ValueError: the structures or shapes differ.
    """

    def put(leaf: Any, target: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.asarray(leaf, target.dtype)
        if array.shape != target.shape:
            raise ValueError(
                f"an array of shape {array.shape} does not match the expected shape {target.shape}"
            )
        return jax.make_array_from_callback(
            array.shape, target.sharding, lambda index: array[index]
        )

    return jax.tree.map(put, host, abstract)
