"""A stage of two small layers and a run of it, importable by processes that tests start.

As a script it is one process of several: python tests/toy_stage.py WORKDIR MANIFEST PROCESS PORT
"""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp

from configs import stage1
from invnext_jax import train

SIZE = 16
PROCESSES = 2


class Model(nn.Module):
    @nn.compact
    def __call__(self, x_bd):
        return nn.Dense(1, name="head")(nn.tanh(nn.Dense(4, name="encoder")(x_bd)))


def loss_fn(config, model, params, frozen, batch, key):
    """How well the number of a row is told from its pixels, with noise from the step's key."""
    x_bd = batch["video"].reshape(batch["video"].shape[0], -1).astype(jnp.float32) / 255
    x_bd = x_bd + 0.1 * jax.random.normal(key, x_bd.shape)
    error_b = model.apply({"params": params}, x_bd)[:, 0] - batch["index"] / 10.0
    loss = jnp.mean(error_b**2)
    return loss, {"loss/distance": loss}


STAGE = types.SimpleNamespace(
    make_model=lambda _: Model(),
    init_params=lambda _, model, key: model.init(key, jnp.zeros((1, 3 * SIZE**2)))["params"],
    abstract_frozen=lambda _: {},
    init_frozen=lambda *_: {},
    warm_start=lambda *_: {},
    following=lambda _: ({}, 1.0),
    untrained=lambda _: (),
    loss_fn=loss_fn,
    diagnostics=lambda *_: {},
    check_config=lambda _: None,
)


def make_config(manifest, devices):
    """Six steps of eight clips, a checkpoint every three, each step logged."""
    config = stage1.get_config("tiny")
    config.stage = "toy"
    config.total_steps, config.batch_size = 6, 8
    config.data.update(manifest=manifest, frames=1, size=SIZE, short_side=SIZE, workers=0)
    config.data.update(repeats=2, weights=(("world", 2.0), ("other", 1.0)))
    config.mesh.data = devices
    config.optimizer.update(learning_rate=0.1, warmup_steps=2)
    config.checkpoint.every_steps = 3
    config.log.update(every_steps=1, diagnostics_every_steps=0)
    return config


if __name__ == "__main__":
    workdir, manifest, process, port = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(process))
    train.STAGES["toy"] = STAGE
    train.train(make_config(manifest, jax.device_count()), workdir)
    jax.distributed.shutdown()
