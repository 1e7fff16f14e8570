"""A run that one process began goes on in two real ones, over gloo, with equal losses."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_stage

from invnext_jax import train
from invnext_jax.runtime import checkpoint, metrics

ROOT = Path(__file__).parents[1]
SECONDS = 300


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def manifest(world, tmp_path):
    """Two sources: videos on disk, and a world that is drawn."""
    other = tmp_path / "other.csv"
    text = (
        world.read_text().replace("train/", f"{world.parent}/train/").replace(",world,", ",other,")
    )
    other.write_text(text)
    return f"{other},world:simple/train?videos=9&seed=4"


def losses(workdir):
    records = metrics.read_metrics(workdir)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    return [record["loss"] for record in records]


def run_processes(workdir, manifest):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    command = [sys.executable, ROOT / "tests" / "toy_stage.py", workdir, manifest]
    processes = [
        subprocess.Popen(
            [*map(str, command), str(number), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(toy_stage.PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs


def test_two_processes_go_on_where_one_was_killed(manifest, tmp_path, one_device, monkeypatch):
    monkeypatch.setitem(train.STAGES, "toy", toy_stage.STAGE)
    config = toy_stage.make_config(manifest, 1)
    train.train(config, tmp_path / "whole")

    push = metrics.Reporter.push

    def push_until_killed(self, step, *arguments):
        push(self, step, *arguments)
        if step == 5:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(metrics.Reporter, "push", push_until_killed)
        train.train(config, tmp_path / "killed")
    assert checkpoint.restore_run(tmp_path / "killed").step == 3
    outputs = run_processes(tmp_path / "killed", manifest)
    assert "going on after step 3" in outputs[0]

    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), rtol=1e-5)
    whole, killed = (checkpoint.restore_run(tmp_path / name).params for name in ("whole", "killed"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, killed)
