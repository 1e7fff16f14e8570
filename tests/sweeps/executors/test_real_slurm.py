"""A sweep of a real tiny training on a real SLURM cluster: preempted, and on two nodes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import FAST_TO_COMPILE

from invnext_jax.sweeps.sweep_folder import Status, SweepFolder

ROOT = Path(__file__).parents[3]
FILE = """
from invnext_jax.sweeps.arms import chain, make_arm, Step

STAGE1 = Step("stage1", "configs/stage1.py:tiny", {
    "encoder.width": 32, "encoder.mlp_width": 32, "encoder.depth": 2, "encoder.pool_width": 32,
    "predictor.width": 32, "predictor.mlp_width": 32, "predictor.depth": 1, "decoder.width": 32,
    "data.frames": 4, "data.manifest": "world:simple/train?videos=32", "batch_size": 8,
    "total_steps": 40, "optimizer.warmup_steps": 1, "checkpoint.every_steps": 2,
    "log.every_steps": 1, "log.diagnostics_every_steps": 0, "log.measure_ceiling": False,
})
PROBE = Step("probe", "configs/eval/tasks/linear_probe.py:tiny", {
    "evaluators": ("knn",), "controls": False, "tasks": ("color",), "poolings": ("mean",),
    "knn.neighbors": (3,), "train_manifest": "world:simple/train?videos=32",
    "val_manifest": "world:simple/val?videos=32",
})

def sweep():
    yield make_arm(chain(stage1=STAGE1, probe=PROBE), {"name": "Stage 1"})
"""


class Sweep:
    """The command of a sweep, in a process."""

    def __init__(self, tmp_path, name, *flags, **variables):
        (tmp_path / "mine.py").write_text(FILE)
        self.folder, self._out = SweepFolder(tmp_path / name), tmp_path / f"{name}.txt"
        command = [sys.executable, "launch/sweep.py", f"--config={tmp_path / 'mine.py'}"]
        command += [f"--workdir={self.folder.path}", *flags]
        # Sums depend on the number of threads. Local jobs have one core, and jobs on SLURM all.
        variables |= {"NPROC": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_TO_COMPILE}
        variables["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
        environment = {**os.environ, **variables}
        with open(self._out, "ab") as out:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out
            )

    def wait(self):
        """Waits for the end, and returns the losses by step and the rows of the evaluation."""
        try:
            code = self._process.wait(timeout=400)
        finally:
            self._process.kill()
        assert code == 0, self.describe()
        jobs = self.folder.read_sweep().jobs
        assert {self.folder.read_state(name).status for name in jobs} == {Status.FINISHED}
        (training, evaluation) = (planned.job.workdir for planned in jobs.values())
        lines = (training / "metrics.jsonl").read_text().splitlines()
        losses = {record["step"]: record["loss"] for record in map(json.loads, lines)}
        rows = json.loads((evaluation / "results.json").read_text())["rows"]
        return losses, [(row["metric"], row["value"]) for row in rows]

    def checkpoints(self):
        return sorted(int(p.name) for p in self.folder.path.glob("runs/stage1-*/checkpoints/[0-9]*")
                      if p.name.isdigit())  # fmt: skip

    def wait_for(self, condition):
        deadline = time.monotonic() + 200
        while not condition():
            assert self._process.poll() is None and time.monotonic() < deadline, self.describe()
            time.sleep(0.1)

    def describe(self):
        paths = [self._out, *self.folder.path.glob("logs/*.log")]
        return "\n".join(path.read_text()[-3000:] for path in paths)


@pytest.mark.slow
def test_preempted_training_ends_with_the_same_table(slurm, tmp_path):
    expected = Sweep(tmp_path, "local").wait()
    sweep = Sweep(tmp_path, "slurm", "--executor=slurm")
    sweep.wait_for(lambda: len(sweep.checkpoints()) >= 2)
    (number,) = slurm.jobs("RUNNING")
    slurm.call("scontrol", "requeue", number)
    sweep.wait_for(lambda: slurm.jobs("PENDING"))
    preempted = sweep.checkpoints()[-1]
    assert 0 < preempted < 40
    slurm.start_now()
    while not slurm.jobs("RUNNING"):
        slurm.start_now()
    assert sweep.wait() == expected  # bit for bit
    (log,) = sweep.folder.path.glob("logs/stage1-*.log")
    assert f"resumes after step {preempted}," in log.read_text()


@pytest.mark.slow
def test_training_on_two_nodes(slurm, tmp_path):
    with socket.socket() as server:
        server.bind(("localhost", 0))
        address = f"localhost:{server.getsockname()[1]}"  # the names of the nodes have no address
    flags = ["--executor=slurm", "--slurm.nodes=2"]
    losses, rows = Sweep(tmp_path, "two", *flags, JAX_COORDINATOR_ADDRESS=address).wait()
    expected, expected_rows = Sweep(tmp_path, "local").wait()
    assert losses[1] == pytest.approx(expected[1], rel=1e-4)
    assert len(losses) == 40 and len(rows) == len(expected_rows)
