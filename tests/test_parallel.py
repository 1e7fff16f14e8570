"""Loss and gradients do not depend on how the work is split over devices."""

import functools

import jax
import numpy as np
import pytest

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax import stage1, stage2
from invnext_jax.runtime import mesh as mesh_lib

STAGES = {"stage1": (stage1, stage1_config), "stage2": (stage2, stage2_config)}
MESHES = [(8, 1, 1, 1), pytest.param((2, 4, 1, 1), marks=pytest.mark.slow), (2, 2, 2, 1)]


def small_config(stage_name):
    config = STAGES[stage_name][1].get_config("tiny")
    config.encoder.update(depth=2, width=32, heads=2, mlp_width=64)
    config.predictor.update(depth=1, width=32, heads=2, mlp_width=32)
    config.data.frames = config.encoder.frames = 2
    if stage_name == "stage1":
        config.teacher.update(depth=2, width=32, heads=2, mlp_width=32, taps=1)
        config.decoder.update(depth=1, width=32)
    return config


def random_like(abstract, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype),
        mesh_lib.unbox(abstract),
    )


@functools.cache
def evaluate(stage_name, sizes):
    """Loss and gradients on the host, computed on a mesh of these sizes."""
    stage, config = STAGES[stage_name][0], small_config(stage_name)
    config.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[: np.prod(sizes)])
    model = stage.make_model(config)
    trees = (
        jax.eval_shape(functools.partial(stage.init_params, config, model), jax.random.key(0)),
        stage.abstract_frozen(config),
    )
    params, frozen = (
        mesh_lib.put_tree(random_like(tree, seed), mesh_lib.abstract_arrays(tree, mesh))
        for seed, tree in enumerate(trees)
    )
    rng = np.random.default_rng(2)
    video_bthwc = rng.integers(0, 256, (8, config.data.frames, 32, 32, 3), dtype=np.uint8)
    batch = mesh_lib.put_batch({"video": video_bthwc}, mesh)
    key = jax.device_put(jax.random.key(3), mesh_lib.replicated(mesh))

    def loss_fn(params, frozen, batch, key):
        return stage.loss_fn(config, model, params, frozen, batch, key)[0]

    with mesh_lib.mesh_rules(mesh):
        return jax.device_get(jax.jit(jax.value_and_grad(loss_fn))(params, frozen, batch, key))


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("stage_name", STAGES)
def test_loss_and_gradients_on_eight_devices_are_those_on_one(stage_name, sizes):
    loss, grads = evaluate(stage_name, (1, 1, 1, 1))
    loss_8, grads_8 = evaluate(stage_name, sizes)
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    flat, flat_8 = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (grads, grads_8)
    )
    assert np.linalg.norm(flat_8 - flat) <= 1e-5 * np.linalg.norm(flat)
    assert np.linalg.norm(flat) > 1e-3
