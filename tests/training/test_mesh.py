import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import stage1
from invnext_jax.errors import UserError
from invnext_jax.models.sharding import with_logical_axes
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import mesh_checks


def make_mesh(data, fsdp, tensor, sequence):
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}
    return mesh_lib.make_mesh(ml_collections.ConfigDict(sizes))


def boxed(shape, axes):
    return jax.eval_shape(lambda: with_logical_axes(jnp.zeros, axes)(shape))


def test_size_of_minus_one_uses_the_remaining_devices():
    assert dict(make_mesh(-1, 2, 1, 1).shape) == {"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1, 1), "does not match the 8 available devices"),
        ((-1, 3, 1, 1), "does not match the 8 available devices"),
        ((4, 1, 1, 1), "does not match the 8 available devices"),
        ((-1, -1, 1, 1), "only one size may be -1"),
        ((0, 8, 1, 1), "at least 1, or -1"),
    ],
)
def test_invalid_mesh_sizes_are_errors(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(*sizes)


def test_logical_axes_map_to_mesh_axes():
    mesh = make_mesh(2, 2, 2, 1)
    tree = {
        "kernel": boxed((4, 6), ("embed", "mlp")),
        "heads": boxed((3, 4, 2), ("layers", "heads", None)),
        "bare": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, mesh_lib.shardings(tree, mesh))
    assert specs == {"kernel": P("fsdp", "tensor"), "heads": P(None, "tensor"), "bare": P()}


def test_indivisible_dimension_is_replicated():
    mesh = make_mesh(1, 2, 4, 1)
    sharding = mesh_lib.shardings(boxed((4, 6), ("embed", "mlp")), mesh)
    assert sharding.spec == P("fsdp")


def test_unknown_logical_axis_is_replicated():
    assert mesh_lib.shardings(boxed((8,), ("color",)), make_mesh(8, 1, 1, 1)).spec == P()


def test_batch_is_sharded_over_data_and_fsdp():
    mesh = make_mesh(2, 2, 2, 1)
    video = np.arange(8 * 3, dtype=np.uint8).reshape(8, 3)
    put = mesh_lib.shard_batch({"video": video}, mesh)["video"]
    np.testing.assert_array_equal(put, video)
    assert {shard.data.shape for shard in put.addressable_shards} == {(2, 3)}
    assert mesh_lib.batch_shards(mesh) == 4


def test_shard_batch_is_an_explicit_transfer():
    with jax.transfer_guard("disallow"):
        mesh_lib.shard_batch({"index": np.arange(8, dtype=np.int32)}, make_mesh(8, 1, 1, 1))


def test_shard_tree_uses_the_abstract_sharding_and_dtype():
    mesh = make_mesh(1, 8, 1, 1)
    abstract = mesh_lib.abstract_arrays({"w": boxed((16,), ("embed",))}, mesh)
    put = mesh_lib.shard_tree({"w": np.arange(16, dtype=np.float64)}, abstract)["w"]
    assert put.dtype == jnp.float32
    assert put.sharding.spec == P("fsdp")
    np.testing.assert_array_equal(put, np.arange(16))


def test_shard_tree_of_another_shape_is_an_error():
    abstract = mesh_lib.abstract_arrays({"w": boxed((16,), ("embed",))}, make_mesh(8, 1, 1, 1))
    with pytest.raises(ValueError, match=r"\(4,\) does not match the expected shape \(16,\)"):
        mesh_lib.shard_tree({"w": np.zeros(4)}, abstract)


def test_logical_constraints_apply_inside_mesh_rules_only():
    mesh = make_mesh(8, 1, 1, 1)
    constrained = jax.jit(lambda x_bd: nn.with_logical_constraint(2 * x_bd, ("batch", None)))
    x_bd = np.ones((8, 4), np.float32)
    with mesh_lib.mesh_rules(mesh):
        assert constrained(x_bd).sharding.shard_shape((8, 4)) == (1, 4)
    jax.clear_caches()
    assert len(constrained(x_bd).sharding.device_set) == 1


@pytest.fixture
def config():
    return stage1.get_config("tiny")


@pytest.mark.parametrize(
    ("chosen", "axes", "sentence"),
    [
        ("ring", {}, "sequence_attention='ring' must be 'gather' or 'all_to_all'"),
        ("all_to_all", {"tensor": 2, "sequence": 2}, "encoder.heads=2 must be divisible by the 4"),
        ("all_to_all", {"sequence": 4}, "encoder.heads=2 must be divisible by the 4 devices"),
        ("all_to_all", {"sequence": 2}, None),
        ("gather", {"sequence": 4}, None),
    ],
)
def test_exchanged_heads_must_be_divisible(config, chosen, axes, sentence):
    config.sequence_attention = chosen
    config.mesh.update(axes)
    mesh = mesh_lib.make_mesh(config.mesh)
    if sentence is None:
        return mesh_checks.check_config(config, mesh)
    with pytest.raises(UserError, match=sentence):
        mesh_checks.check_config(config, mesh)


def test_indivisible_batch_over_devices_is_an_error(config):
    config.batch_size = 12
    config.mesh.update(data=-1, fsdp=2)
    with pytest.raises(UserError, match="batch_size=12 must be divisible by the 8 devices"):
        mesh_checks.check_batch(config, mesh_lib.make_mesh(config.mesh))


def test_one_process_loads_the_whole_batch():
    for sizes in ((8, 1, 1, 1), (1, 1, 1, 8), (2, 1, 2, 2)):
        mesh = make_mesh(*sizes)
        assert mesh_lib.batch_positions(mesh, 16) == list(range(16))
        assert not mesh_lib.shares_shards(mesh) and mesh_lib.loads_first_copy(mesh)


def test_first_copy_of_a_shard_replaces_the_others():
    mesh = make_mesh(2, 1, 2, 2)
    rows = np.arange(4, dtype=np.uint8)
    copies = [
        jax.device_put(rows[part] + 10 * device.id, device)
        for device, (part,) in mesh_lib.batch_sharding(mesh).devices_indices_map((4,)).items()
    ]
    put = jax.make_array_from_single_device_arrays((4,), mesh_lib.batch_sharding(mesh), copies)
    agreed = mesh_lib._make_take_first_copy(mesh)({"index": put})["index"]
    first = [mesh.devices[i, 0, 0, 0].id for i in (0, 1)]
    for shard in agreed.addressable_shards:
        number = (shard.index[0].start or 0) // 2
        np.testing.assert_array_equal(shard.data, rows[shard.index[0]] + 10 * first[number])
