"""A run of the toy stage with two checkpoints."""

import functools

import jax
import optax
import pytest
from checkpoint_cases import make_state, open_checkpointer, open_data

from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib


@pytest.fixture
def abstract(toy_stage, toy_config):
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    init_fn = functools.partial(toy_stage.init_params, toy_config, toy_stage.make_model(toy_config))
    return state_lib.abstract_state(init_fn, optax.adam(1e-3), mesh)


@pytest.fixture
def run(toy_config, toy_data, abstract, tmp_path):
    """A workdir with checkpoints of steps 2 and 3."""
    workdir = tmp_path / "run"
    toy_config.total_steps = 3
    data_iter = open_data(toy_data)
    with open_checkpointer(workdir, toy_config) as checkpointer:
        for step in (1, 2, 3):
            next(data_iter)
            checkpointer.save(step, make_state(abstract, step), data_iter.get_state())
    return workdir
