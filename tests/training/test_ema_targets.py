"""A copy that follows the parameters: in the loop, in checkpoints, on a mesh."""

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
    """Stands for the end of the process."""


@pytest.fixture
def following_config(toy_config, toy_stage):
    """A toy whose loss is the distance of its output from that of a copy of its first layer."""

    def loss(config, model, params, frozen, batch, key):
        x_bd = batch["video"].reshape(batch["video"].shape[0], -1).astype(jnp.float32) / 255
        own, copy = (
            jnp.tanh(x_bd @ tree["kernel"]) for tree in (params["encoder"], frozen["target"])
        )
        head = jnp.sum(params["head"]["kernel"] ** 2) + jnp.sum(frozen["map"] ** 2)
        return jnp.mean((own - copy - 0.1) ** 2) + head, {}

    def diagnose(config, model, params, frozen, batch, key):
        kernels = (tree["kernel"] for tree in (params["encoder"], frozen["target"]))
        return {"gap": jnp.mean(jnp.abs(jnp.subtract(*kernels)))}

    toy_stage.loss_fn = loss
    toy_stage.following = lambda _: ({"target": "encoder"}, MOMENTUM)
    toy_stage.diagnostics = diagnose
    return toy_config


def logged(workdir, name):
    return [record[name] for record in metrics_file.read_metrics(workdir) if name in record]


def test_a_killed_run_with_a_copy_goes_on_bit_by_bit(
    following_config, toy_data, first_device_only, tmp_path
):
    train.train(following_config, tmp_path / "whole")

    def kill():
        raise KilledError

    toy_data.before_batch[6] = kill
    with pytest.raises(KilledError):
        train.train(following_config, tmp_path / "killed")
    toy_data.before_batch.clear()
    train.train(following_config, tmp_path / "killed")
    whole, killed = (reader.restore_params(tmp_path / name)[0] for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, whole, killed)
    for name in ("loss", "gap"):
        assert logged(tmp_path / "killed", name) == logged(tmp_path / "whole", name)
    gaps = logged(tmp_path / "whole", "gap")
    assert gaps[0] == 0 < gaps[-1]  # it starts where the encoder does, and trails it


def test_a_copy_lies_on_the_mesh_like_its_group(
    following_config, toy_stage, first_device_only, monkeypatch
):
    monkeypatch.setattr(train.mesh_lib.jax, "devices", lambda: first_device_only)
    following_config.mesh.update(data=2, fsdp=2, tensor=2, sequence=1)
    mesh = mesh_lib.make_mesh(following_config.mesh)
    schedule = optimizer.make_schedule(following_config.optimizer, 6)
    tx = optimizer.make_optimizer(following_config.optimizer, schedule)

    def init_fn(key):
        return toy_stage.init_params(None, toy_stage.make_model(None), key)

    copies = {"target": "encoder"}
    abstract = state_lib.abstract_state(init_fn, tx, mesh, copies)
    assert abstract.follow["target"] == abstract.params["encoder"]
    state = state_lib.init_state(init_fn, tx, abstract, jax.random.key(0))
    state = state_lib.init_copies(state, copies)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == wanted
