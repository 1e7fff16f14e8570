"""A sweep of real tiny trainings that is killed again and again ends with the same table."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import FAST_TO_COMPILE

from invnext_jax.sweeps.executors.local_executor import LOCK_VARIABLE
from invnext_jax.sweeps.sweep_folder import Status, SweepFolder

ROOT = Path(__file__).parents[2]
# Three chains for each seed: six jobs, of which Stage 1 is shared.
FILE = """
from invnext_jax.sweeps.arms import chain, make_arm, Step

SMALL = {
    "encoder.width": 32, "encoder.mlp_width": 32, "encoder.depth": 1, "encoder.pool_width": 32,
    "predictor.width": 32, "predictor.mlp_width": 32, "predictor.depth": 1, "decoder.width": 32,
    "data.frames": 4, "data.manifest": "world:simple/train?videos=16", "batch_size": 8,
    "total_steps": 3, "optimizer.warmup_steps": 1, "checkpoint.every_steps": 1,
    "log.every_steps": 1, "log.diagnostics_every_steps": 0, "log.measure_ceiling": False,
}
STAGE1 = Step("stage1", "configs/stage1.py:tiny", SMALL | {"teacher.taps": 1})
SMALL2 = {k: v for k, v in SMALL.items() if not k.startswith("decoder.")}
STAGE2 = Step("stage2", "configs/stage2.py:tiny", SMALL2)
PROBE = Step("probe", "configs/eval/tasks/linear_probe.py:tiny", {
    "evaluators": ("knn",), "controls": False, "tasks": ("color",), "poolings": ("mean",),
    "knn.neighbors": (3,), "train_manifest": "world:simple/train?videos=16",
    "val_manifest": "world:simple/val?videos=16",
})

def sweep():
    one, two = chain(stage1=STAGE1, probe=PROBE), chain(stage1=STAGE1, stage2=STAGE2, probe=PROBE)
    yield make_arm(one, {"name": "Stage 1"}, is_baseline=True)
    yield make_arm(two, {"name": "Stage 2"})
    yield make_arm(two, {"name": "momentum", "stage2.target.kind": "momentum"})
"""

ONE_DEVICE = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": FAST_TO_COMPILE,
}
SECONDS = 1500  # time limit of a command


def start(tmp_path, name, *flags):
    """Starts the command of the sweep `name`."""
    command = [sys.executable, "launch/sweep.py", f"--workdir={tmp_path / name}", *flags]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment |= ONE_DEVICE
    with open(tmp_path / f"{name}.txt", "ab") as out:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )


def run(tmp_path, name, *flags):
    process = start(tmp_path, name, *flags)
    try:
        assert process.wait(timeout=SECONDS) == 0, (tmp_path / f"{name}.txt").read_text()[-2000:]
    finally:
        kill_group(process)


def kill_group(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def job_pids(folder):
    """The processes of jobs of a sweep, by the path of their lock."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            name, _, lock = variable.decode(errors="replace").partition("=")
            if name == LOCK_VARIABLE and lock.startswith(f"{folder}/"):
                found[int(path.name)] = lock
    return found


def kill_jobs(folder):
    for pid in job_pids(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_sweep_of_trainings_ends_with_the_same_table(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    flags = [f"--config={tmp_path / 'mine.py'}", "--seeds=0,1", "--cores_per_job=1"]
    folder = SweepFolder(tmp_path / "disturbed")
    rng = random.Random(0)
    try:
        run(tmp_path, "undisturbed", *flags)
        for number in range(5):
            process = start(tmp_path, "disturbed", *flags)
            wait_for(lambda: job_pids(folder.path), process)
            time.sleep(rng.uniform(0.0, 15.0))
            kill_group(process)
            if number % 2:
                kill_jobs(folder.path)
        fail_once(tmp_path, folder, flags)
        run(tmp_path, "disturbed", *flags)
    finally:
        kill_jobs(tmp_path)
    sweep = folder.read_sweep()
    assert len(sweep.jobs) == 12
    assert {folder.read_state(name).status for name in sweep.jobs} == {Status.FINISHED}
    tables = []
    for name in ("undisturbed", "disturbed"):
        run(tmp_path, name, f"--report={tmp_path / name}.csv")
        tables.append((tmp_path / f"{name}.csv").read_text())
    assert tables[0] == tables[1]
    assert tables[0].count("\n") == 4 and "momentum" in tables[0]
    assert_ran_once(tmp_path / "undisturbed", sweep.jobs)
    stage1 = [name for name in sweep.jobs if name.startswith("stage1-")]
    assert len(stage1) == 2
    for name, planned in sweep.jobs.items():
        if planned.total_steps:
            losses = read_losses(folder.path / "runs" / name)
            assert [step for step, _ in losses] == [1, 2, 3], name
            assert losses == read_losses(tmp_path / "undisturbed/runs" / name), name


def read_losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def wait_for(condition, process=None, seconds=300):
    """Waits until the condition is true or the process has ended."""
    deadline = time.monotonic() + seconds
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fail_once(tmp_path, folder, flags):
    """Kills a job while the sweep command runs, so that it counts as failed and is repeated."""
    if not any(folder.read_state(name).status is not Status.FINISHED for name in jobs(folder)):
        return
    kill_jobs(folder.path)  # jobs of an earlier command would not count as failed
    wait_for(lambda: not job_pids(folder.path))
    process = start(tmp_path, "disturbed", *flags)
    try:
        wait_for(lambda: job_pids(folder.path), process)
        locks = set(job_pids(folder.path).values())
        kill_jobs(folder.path)
        names = [Path(lock).stem for lock in locks]
        wait_for(lambda: any(folder.read_state(name).failures for name in names), process)
        assert process.wait(timeout=SECONDS) == 0
        assert any(folder.read_state(name).failures for name in names)
    finally:
        kill_group(process)


def jobs(folder):
    return folder.read_sweep().jobs


def assert_ran_once(folder, names):
    for name in names:
        assert (folder / f"logs/{name}.log").read_text().count("$ ") == 1, name
