"""Lowers the large variants from abstract shapes, without creating arrays or compiling."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.stages.registry import STAGES
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import optimizer, recipe
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

BATCH = 8
STAGES = {"stage1": (stage1, stage1_config), "stage2": (stage2, stage2_config)}
MESH = ml_collections.ConfigDict({"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1})


def abstract_arguments(config, stage, mesh):
    """Returns the model, the optimizer, and abstract arguments of the step with shardings."""
    model = stage.make_model(config)
    config, _ = recipe.resolve_config(config, recipe.PAPER_VIDEOS)
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    tx = optimizer.make_optimizer(config.optimizer)
    init_fn = functools.partial(stage.init_params, config, model)
    state = state_lib.abstract_state(init_fn, tx, mesh)
    frozen = mesh_lib.abstract_arrays(stage.abstract_frozen(config), mesh)
    side = config.data.size
    video = jax.ShapeDtypeStruct(
        (BATCH, config.data.frames, side, side, 3),
        jnp.uint8,
        sharding=mesh_lib.batch_sharding(mesh),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=mesh_lib.replicated(mesh))
    loss_fn = functools.partial(stage.loss_fn, config, model)
    step = step_lib.make_train_step(loss_fn, tx)
    return step, (state, frozen, {"video": video}, key, schedule)


@pytest.mark.parametrize("variant", ["base", "large", "1b"])
@pytest.mark.parametrize("stage_name", STAGES)
def test_training_step_lowers_from_shapes(stage_name, variant):
    stage, configs = STAGES[stage_name]
    config = ml_collections.FrozenConfigDict(configs.get_config(variant))
    mesh = mesh_lib.make_mesh(MESH)
    with mesh_lib.mesh_rules(mesh):
        step, arguments = abstract_arguments(config, stage, mesh)
        lowered = jax.jit(step, donate_argnums=0).lower(*arguments)
    state, metrics = lowered.out_info
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arguments[0])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == before
    assert metrics["loss"].shape == ()
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.parametrize("stage_name", STAGES)
def test_large_parameters_and_moments_are_split_over_the_mesh(stage_name):
    stage, configs = STAGES[stage_name]
    config = ml_collections.FrozenConfigDict(configs.get_config("1b"))
    mesh = mesh_lib.make_mesh(MESH)
    with mesh_lib.mesh_rules(mesh):
        _, (state, frozen, *_) = abstract_arguments(config, stage, mesh)
    for leaf in jax.tree.leaves((state.params, state.opt_state, frozen)):
        if leaf.size > 5e6:
            part = leaf.sharding.shard_shape(leaf.shape)
            assert part != leaf.shape, f"{leaf.shape} is not sharded"
