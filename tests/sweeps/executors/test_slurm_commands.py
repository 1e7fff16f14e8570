"""Scripts and options of jobs on SLURM. Fake commands give the rare answers of SLURM."""

import dataclasses
import json
import os
import subprocess
import time

import fake_sweeps
import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps.executors.slurm import SlurmExecutor
from invnext_jax.sweeps.executors.slurm_script import SlurmOptions, make_script, sbatch_flags
from invnext_jax.sweeps.job import Phase, Resources
from invnext_jax.sweeps.step_config import Kind


def make_job(folder, name):
    return fake_sweeps.make_job(folder, name, Kind.TRAIN).job


def make_executor():
    return SlurmExecutor(SlurmOptions(), refresh_seconds=0.2, grace_seconds=2.0)


def test_script_has_the_options_of_the_sweep(tmp_path):
    job = make_job(tmp_path, "s1")
    job = dataclasses.replace(
        job,
        environment={"NOTE": "it's a test"},
        command=("python", "main.py", "--config.axes=(1, 2)"),
        log=tmp_path / "50%" / "s1.log",
        resources=Resources(hosts=8, devices=4, cores=16),
    )
    options = SlurmOptions(
        partition="gpu", account="lab", time="12:00:00", gpu_type="h100", mem="200G",
        extra=("--constraint=ib",), setup=("module load cuda",),
    )  # fmt: skip
    flags = sbatch_flags(job, "s1-x", options)
    assert set(flags) >= {
        *("--job-name=s1-x", f"--output={tmp_path}/50%%/s1.log", "--open-mode=append"),
        *("--nodes=8", "--ntasks-per-node=1", "--gpus-per-node=h100:4", "--cpus-per-task=16"),
        *("--partition=gpu", "--account=lab", "--time=12:00:00", "--mem=200G", "--constraint=ib"),
        *("--requeue", "--signal=B:USR1@180", "--dependency=singleton"),
    }
    assert not any(flag.startswith("--qos") for flag in flags)
    script = make_script(job, tmp_path / "exit.json", flags, options)
    assert script.index("module load cuda") < script.index("srun ")
    assert "--cpus-per-task=16 python main.py '--config.axes=(1, 2)' &" in script
    assert "export NOTE='it'\"'\"'s a test'\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_options_are_checked():
    with pytest.raises(UserError, match=r"--slurm.extra=constraint=ib must be an option"):
        SlurmOptions(extra=("constraint=ib",))
    with pytest.raises(UserError, match=r"save_seconds=0 must be at least 1"):
        SlurmOptions(save_seconds=0)


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Commands that print the file <command>.out, or fail with the text of <command>.err."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("sbatch", "squeue", "scancel"):
        path = folder / name
        path.write_text(
            f'#!/bin/bash\ncd {folder}; echo "{name} $*" >> calls\n'
            f"[ ! -f {name}.err ] || {{ cat {name}.err >&2; exit 1; }}\ncat {name}.out\n"
        )
        path.chmod(0o755)
        (folder / f"{name}.out").write_text("7\n" if name == "sbatch" else "")
    return folder


def test_missing_commands_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs the commands sbatch, squeue, scancel"):
        make_executor()


def test_job_is_not_ended_while_slurm_does_not_respond(fake_slurm, tmp_path, caplog):
    executor, job = make_executor(), make_job(tmp_path, "s1")
    executor.submit(job)
    (fake_slurm / "squeue.err").write_text("slurm_load_jobs error: Unable to contact slurm\n")
    assert executor.poll(job, None).phase is Phase.QUEUED
    assert "squeue fails (slurm_load_jobs error: Unable to contact slurm)" in caplog.text


def test_job_is_submitted_again_if_the_queue_was_full(fake_slurm, tmp_path):
    executor, job = make_executor(), make_job(tmp_path, "s1")
    error = fake_slurm / "sbatch.err"
    error.write_text("sbatch: error: Job violates accounting/QOS policy (job submit limit, ...)\n")
    assert executor.submit(job)["number"] is None
    assert executor.poll(job, None).phase is Phase.QUEUED
    error.unlink()
    time.sleep(0.3)
    assert executor.poll(job, None).phase is Phase.QUEUED
    calls = (fake_slurm / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["sbatch", "squeue", "squeue", "sbatch"]


@pytest.mark.parametrize(
    "state, record, expected",
    [
        ("TIMEOUT", None, (None, "time limit", False)),
        ("NODE_FAIL", None, (None, "failure of a node", True)),
        ("COMPLETED", {"exit_code": 0, "stopped": False}, (0, "", False)),
        ("PREEMPTED", {"exit_code": 0, "stopped": False}, (0, "", True)),
        ("FAILED", {"exit_code": 3, "stopped": False}, (3, "", False)),
        ("FAILED", {"exit_code": 137, "stopped": False}, (-9, "", False)),
        ("COMPLETED", {"exit_code": 1, "stopped": True}, (1, "", True)),
        ("COMPLETED", None, (None, "", False)),  # after the grace period
    ],
)
def test_end_of_a_job(fake_slurm, tmp_path, state, record, expected):
    job = make_job(tmp_path, "s1")
    executor = SlurmExecutor(SlurmOptions(), refresh_seconds=0.0, grace_seconds=0.2)
    name = executor.submit(job)["name"]
    lines = [f"6|RUNNING|None|{name}x", f"5|FAILED|None|{name}", f"7|{state}|None|{name}"]
    (fake_slurm / "squeue.out").write_text("\n".join(["4_1|RUNNING|None|a", *lines]) + "\n")
    if record is not None:
        job.log.with_suffix(".exit.json").write_text(json.dumps(record))
    poll = executor.poll(job, None)
    if (state, record) == ("COMPLETED", None):
        assert poll.phase is Phase.RUNNING
        time.sleep(0.3)
        poll = executor.poll(job, None)
    assert poll.phase is Phase.ENDED
    assert (poll.exit_code, poll.reason, poll.stopped) == expected


def test_number_of_jobs_is_limited(fake_slurm, tmp_path):
    executor = SlurmExecutor(SlurmOptions(), max_jobs=1, refresh_seconds=0.0)
    jobs = [make_job(tmp_path, name) for name in "ab"]
    assert executor.has_room(jobs[0])
    name = executor.submit(jobs[0])["name"]
    assert not executor.has_room(jobs[1])
    (fake_slurm / "squeue.out").write_text(f"7|CANCELLED|None|{name}\n")
    executor.poll(jobs[0], None)
    assert executor.has_room(jobs[1])


def test_held_job_is_logged(fake_slurm, tmp_path, caplog):
    executor, job = make_executor(), make_job(tmp_path, "s1")
    name = executor.submit(job)["name"]
    (fake_slurm / "squeue.out").write_text(f"7|PENDING|launch failed requeued held|{name}\n")
    assert executor.poll(job, None).phase is Phase.QUEUED
    assert "`scontrol release 7` lets it start" in caplog.text
