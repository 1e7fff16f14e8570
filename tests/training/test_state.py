import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib

TX = optax.adam(1e-3)


@pytest.fixture
def init_fn(toy_stage, toy_config):
    return functools.partial(toy_stage.init_params, toy_config, toy_stage.make_model(toy_config))


def test_moments_have_the_shardings_of_their_parameters(init_fn, toy_mesh):
    abstract = state_lib.abstract_state(init_fn, TX, toy_mesh)
    kernel = abstract.params["encoder"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    assert abstract.opt_state[0].mu["encoder"]["kernel"].sharding == kernel.sharding
    assert abstract.step.sharding.spec == P()


def test_initial_values_do_not_depend_on_the_mesh(init_fn, toy_mesh, toy_config):
    toy_config.mesh.update(data=1, fsdp=1, tensor=1)
    one = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    states = [
        state_lib.init_state(
            init_fn, TX, state_lib.abstract_state(init_fn, TX, mesh), jax.random.key(0)
        )
        for mesh in (toy_mesh, one)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0].params["encoder"]["kernel"].sharding.spec == P("fsdp", "tensor")


def test_initial_state_has_zero_counters(init_fn, toy_mesh):
    abstract = state_lib.abstract_state(init_fn, TX, toy_mesh)
    state = state_lib.init_state(init_fn, TX, abstract, jax.random.key(0))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (0, 0, 0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
