"""Both stages at a size that compiles in seconds, with random parameters and clips."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1 as config1
from configs import stage2 as config2
from invnext_jax.models import teachers
from invnext_jax.stages.registry import STAGES

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]


def small(module):
    """Returns the tiny variant of a config module, made smaller."""
    config = module.get_config("tiny")
    config.encoder.update(depth=2, width=32, heads=2, mlp_width=64)
    config.predictor.update(depth=2, width=32, heads=2, mlp_width=32)
    config.data.frames = config.encoder.frames = 4
    if config.stage == "stage1":
        config.teacher.update(depth=2, width=32, heads=2, mlp_width=32)
        config.decoder.update(depth=1, width=32)
    return config


def prepared(stage, config):
    """Returns the model of a stage and random parameters."""
    model = stage.make_model(config)
    init = functools.partial(stage.init_params, config, model)
    params = nn.unbox(jax.jit(init)(jax.random.key(0)))
    # Gradients would vanish if parameters that are initialized to zero kept this value.
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda x: x + np.float32(0.05) * rng.standard_normal(x.shape, np.float32), params
    )


@pytest.fixture(scope="session")
def batch():
    """A batch of three clips of 4 frames."""
    rng = np.random.default_rng(0)
    return {"video": rng.integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)}


@pytest.fixture(scope="session")
def first():
    """Config, model, parameters and frozen parameters of Stage 1."""
    config = small(config1)
    model, params = prepared(stage1, config)
    images = jnp.zeros((1, 32, 32, 3))
    init = jax.jit(teachers.from_config(config).init)
    frozen = nn.unbox(init(jax.random.key(2), images)["params"])
    return config, model, params, {"teacher": frozen}


@pytest.fixture(scope="session")
def second(first):
    """Config, model, parameters and frozen parameters of Stage 2.

    The target is the encoder of `first`.
    """
    config = small(config2)
    model, params = prepared(stage2, config)
    return config, model, params, {"target": first[2]["encoder"]}
