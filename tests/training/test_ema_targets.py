"""EMA targets in the loop, in checkpoints and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.monitoring import metrics_file
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import optimizer
from invnext_jax.training import state as state_lib

MOMENTUM = 0.8


class KilledError(Exception):
    """Simulates the end of the process."""


@pytest.fixture
def ema_config(toy_config, toy_stage):
    """A toy run whose loss compares the output of its first layer with that of the EMA target."""

    def loss(config, model, params, frozen, batch, key):
        x_bd = batch["video"].reshape(batch["video"].shape[0], -1).astype(jnp.float32) / 255
        online, target = (
            jnp.tanh(x_bd @ tree["kernel"]) for tree in (params["encoder"], frozen["target"])
        )
        head = jnp.sum(params["head"]["kernel"] ** 2) + jnp.sum(frozen["map"] ** 2)
        return jnp.mean((online - target - 0.1) ** 2) + head, {}

    def diagnose(config, model, params, frozen, batch, key):
        kernels = (tree["kernel"] for tree in (params["encoder"], frozen["target"]))
        return {"gap": jnp.mean(jnp.abs(jnp.subtract(*kernels)))}

    toy_stage.loss_fn = loss
    toy_stage.ema_targets = lambda _: ({"target": "encoder"}, MOMENTUM)
    toy_stage.diagnostics = diagnose
    return toy_config


def logged(workdir, name):
    return [record[name] for record in metrics_file.read_metrics(workdir) if name in record]


def test_resumed_run_with_ema_target_is_bitwise_identical(
    ema_config, toy_data, first_device_only, tmp_path
):
    train.train(ema_config, tmp_path / "uninterrupted")

    def kill():
        raise KilledError

    toy_data.before_batch[6] = kill
    with pytest.raises(KilledError):
        train.train(ema_config, tmp_path / "killed")
    toy_data.before_batch.clear()
    train.train(ema_config, tmp_path / "killed")
    uninterrupted, killed = (
        reader.restore_params(tmp_path / name)[0] for name in ("uninterrupted", "killed")
    )
    jax.tree.map(np.testing.assert_array_equal, uninterrupted, killed)
    for name in ("loss", "gap"):
        assert logged(tmp_path / "killed", name) == logged(tmp_path / "uninterrupted", name)
    gaps = logged(tmp_path / "uninterrupted", "gap")
    assert gaps[0] == 0 < gaps[-1]  # the target is initialized to the encoder and then lags


def test_ema_target_has_the_sharding_of_its_group(
    ema_config, toy_stage, first_device_only, monkeypatch
):
    monkeypatch.setattr(train.mesh_lib.jax, "devices", lambda: first_device_only)
    ema_config.mesh.update(data=2, fsdp=2, tensor=2, sequence=1)
    mesh = mesh_lib.make_mesh(ema_config.mesh)
    tx = optimizer.make_optimizer(ema_config.optimizer)

    def init_fn(key):
        return toy_stage.init_params(None, toy_stage.make_model(None), key)

    ema_targets = {"target": "encoder"}
    abstract = state_lib.abstract_state(init_fn, tx, mesh, ema_targets)
    assert abstract.follow["target"] == abstract.params["encoder"]
    state = state_lib.init_state(init_fn, tx, abstract, jax.random.key(0))
    state = state_lib.init_ema(state, ema_targets)
    expected = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == expected
