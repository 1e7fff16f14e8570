"""Training in several processes gives the batches, states and checkpoints of one process."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from processes import FAST_TO_COMPILE, run_processes

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.data import pipeline
from invnext_jax.monitoring import metrics_file
from invnext_jax.training import mesh as mesh_lib

TOY_RUN = pathlib.Path(__file__).parents[1] / "support/toy_run.py"
MAKE_DATASET = pipeline.make_train_dataset  # saved before a fixture replaces it
DEVICES = 4

RUN = """
import importlib.util, json, os, sys
from absl import flags
import ml_collections
flags.FLAGS.mark_as_parsed()
from invnext_jax import errors
from invnext_jax.stages import registry
from invnext_jax import train
from invnext_jax.checkpointing import manager
from invnext_jax.multihost import distributed
from invnext_jax.monitoring import reporter
from invnext_jax.training import mesh as mesh_lib
toy_file, config, workdir, kill_step, device_order = sys.argv[1:]
config = ml_collections.ConfigDict(json.loads(config))
if config.stage == "toy":
    spec = importlib.util.spec_from_file_location("toy", toy_file)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    registry.STAGES["toy"] = toy.make_toy_stage()
if device_order := json.loads(device_order):  # as jax.make_mesh may do
    import jax
    make_mesh = jax.make_mesh
    def make_permuted_mesh(*sizes, devices, **options):
        mesh = make_mesh(*sizes, devices=devices, **options)
        order = mesh.devices.ravel()[device_order].reshape(mesh.devices.shape)
        return jax.sharding.Mesh(order, mesh.axis_names, axis_types=mesh.axis_types)
    jax.make_mesh = make_permuted_mesh
shard_batch, all_rows = mesh_lib.shard_batch, []
def shard_and_record(*arguments):
    arrays = shard_batch(*arguments)
    shards = arrays["index"].addressable_shards
    all_rows.append([(shard.index[0].start or 0, shard.data.tolist()) for shard in shards])
    return arrays
mesh_lib.shard_batch = shard_and_record
save, push = manager.Checkpointer.save, reporter.Reporter.add_step
def save_at_once(self, *rest, **more):
    save(self, *rest, **more)
    self.wait()
manager.Checkpointer.save = save_at_once
def push_until_killed(self, step, *rest):
    push(self, step, *rest)
    if step == int(kill_step):
        os._exit(9)  # the other processes end in their next collective
reporter.Reporter.add_step = push_until_killed
with errors.exit_on_user_error():
    distributed.initialize(timeout_seconds=60)
    train.train(config, workdir)
    with open(f"{workdir}/rows{os.environ['JAX_PROCESS_ID']}.json", "w") as file:
        json.dump(all_rows, file)
"""


def run_hosts(count, config, workdir, kill_step=0, device_order=()):
    """Runs a config in `count` processes with four devices in total; returns their exit codes."""
    ended = run_processes(
        *(count, RUN, TOY_RUN, json.dumps(config.to_dict()), workdir, kill_step),
        json.dumps(device_order),
        timeout=300,
        XLA_FLAGS=f"{FAST_TO_COMPILE} --xla_force_host_platform_device_count={DEVICES // count}",
    )
    codes = [code for code, _, _ in ended]
    assert kill_step or codes == [0] * count, ended
    return codes


@pytest.fixture
def hosts_config(toy_config, world, monkeypatch):
    """The toy stage on real videos, on a mesh (2, 2) of four devices."""
    devices = jax.devices()[:DEVICES]
    monkeypatch.setattr(train.mesh_lib.jax, "devices", lambda: devices)
    monkeypatch.setattr(train.pipeline, "make_train_dataset", MAKE_DATASET)
    toy_config.encoder.patch = 1
    toy_config.data.update(manifest=str(world), frames=1, size=2, workers=0)
    toy_config.mesh.update(data=2, fsdp=2)
    return toy_config


def assert_same_run(one, other):
    params, others = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (reader.restore_params(workdir)[0] for workdir in (one, other))
    )
    # Adam makes full steps for gradients that are rounding noise, so only the norm is compared.
    assert np.linalg.norm(others - params) <= 2e-5 * np.linalg.norm(params)
    one, other = (
        np.array(
            [(record["step"], record["loss"]) for record in metrics_file.read_metrics(workdir)]
        )
        for workdir in (one, other)
    )
    np.testing.assert_allclose(one, other, rtol=2e-5)


def test_two_processes_train_like_one_and_one_resumes_their_checkpoint(hosts_config, tmp_path):
    train.train(hosts_config, tmp_path / "one")
    assert run_hosts(2, hosts_config, tmp_path / "two", kill_step=5) != [0, 0]
    assert os.listdir(tmp_path / "two/checkpoints") == ["3"]
    hosts_config.mesh.update(data=1, fsdp=4)  # changes nothing
    train.train(hosts_config, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")


def rows_of_batches(workdir):
    """Returns the manifest rows of each batch; checks that the devices of a shard have the same."""
    batches = {}
    for path in sorted(workdir.glob("rows*.json")):
        for number, shards in enumerate(json.loads(path.read_text())):
            for start, rows in shards:
                assert batches.setdefault(number, {}).setdefault(start, rows) == rows
    return [sum((rows for _, rows in sorted(batch.items())), []) for batch in batches.values()]


@pytest.mark.parametrize(
    ("sizes", "device_order"),
    [
        ((2, 2, 1, 1), [0, 2, 1, 3]),  # the shards of a process are not consecutive
        ((1, 2, 2, 1), [0, 2, 1, 3]),  # each process has a copy of both shards
        pytest.param((1, 1, 1, 4), [], marks=pytest.mark.slow),  # there is only one shard
    ],
)
def test_processes_load_the_shards_of_their_devices(sizes, device_order, hosts_config, tmp_path):
    hosts_config.total_steps = 3
    run_hosts(1, hosts_config, tmp_path / "one")
    hosts_config.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    run_hosts(2, hosts_config, tmp_path / "two", device_order=device_order)
    batches = rows_of_batches(tmp_path / "one")
    assert len(batches) == 3 and len(batches[0]) == hosts_config.batch_size
    assert rows_of_batches(tmp_path / "two") == batches
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_four_processes_resume_the_checkpoint_of_two(hosts_config, tmp_path):
    train.train(hosts_config, tmp_path / "one")
    run_hosts(2, hosts_config, tmp_path / "run", kill_step=5)
    run_hosts(4, hosts_config, tmp_path / "run")
    assert_same_run(tmp_path / "one", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1, 1), (1, 1, 1, 4)])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_train_a_stage_like_one(stage, sizes, tiny_config, stage1_run, tmp_path):
    config = tiny_config(stage)
    config.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    if stage == "stage2":
        config.init_from = str(stage1_run)
    run_hosts(1, config, tmp_path / "one")
    run_hosts(2, config, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
