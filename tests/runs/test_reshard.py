"""A run saved on one mesh resumes on another, with equal values."""

import functools
import os

import jax
import numpy as np
import pytest
from checkpoint_cases import open_checkpointer

from invnext_jax.data import pipeline
from invnext_jax.stages.registry import STAGES
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import optimizer
from invnext_jax.training import state as state_lib

stage1 = STAGES["stage1"]


def open_data(config):
    return iter(pipeline.make_train_dataset(config.data, seed=0, batch_size=config.batch_size))


def abstract_on(config, *sizes):
    config.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[: np.prod(sizes)])
    tx = optimizer.make_optimizer(config.optimizer)
    init_fn = functools.partial(stage1.init_params, config, stage1.make_model(config))
    return state_lib.abstract_state(init_fn, tx, mesh)


def numbered(abstract):
    """Returns a state in which all values of an array differ: 1, 2, 3, ..., at step 1."""

    def fill(leaf):
        values = np.arange(np.prod(leaf.shape), dtype=leaf.dtype).reshape(leaf.shape)
        return jax.device_put(values + np.ones((), leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, abstract)


@pytest.fixture
def saved(tiny_config, tmp_path):
    config = tiny_config("stage1")
    state = numbered(abstract_on(config, 8, 1, 1, 1))
    data_iter = open_data(config)
    next(data_iter)
    with open_checkpointer(tmp_path, config) as saver:
        saver.save(1, state, data_iter.get_state())
    data_iter.close()
    return config, state


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (2, 2, 2, 1), (1, 1, 1, 1)])
def test_a_state_saved_on_eight_devices_is_restored_on_another_mesh(saved, sizes, tmp_path):
    config, state = saved
    abstract = abstract_on(config, *sizes)
    data_iter = open_data(config)
    with open_checkpointer(tmp_path, config) as saver:
        restored = saver.restore(abstract, data_iter)
    data_iter.close()
    jax.tree.map(np.testing.assert_array_equal, state, restored)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == wanted
    if sizes == (2, 4, 1, 1):
        split = [leaf for leaf in jax.tree.leaves(restored.params) if "fsdp" in leaf.sharding.spec]
        assert len(split) > len(jax.tree.leaves(restored.params)) / 2
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
