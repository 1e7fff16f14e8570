"""Flags of launch/sweep.py that have no effect together are refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps.flag_checks import check_flags

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "executor", "sentence"),
    [
        (["status", "cancel"], "local", "--status and --cancel are different commands: choose"),
        (["retry_failed", "dry_run"], "local", "--dry_run and --retry_failed are different"),
        (["config", "baseline"], "local", "--baseline has no effect without --report: add it"),
        (["status", "baseline"], "local", "--baseline has no effect without --report"),
        (["status", "config"], "local", "--config has no effect with --status: remove one"),
        (["report", "seeds"], "local", "--seeds has no effect with --report"),
        (["cancel", "max_jobs"], "slurm", "--max_jobs has no effect with --cancel"),
        (["collect", "executor"], "jobset", "--executor has no effect with --collect"),
        (["slurm.partition"], "local", "--slurm.partition has no effect with --executor=local"),
        (["slurm.nodes", "dry_run"], "local", "set --executor=slurm"),
        (["out"], "local", "--out has no effect with --executor=local: set --executor=skypilot or"),
        (["out"], "slurm", "--out has no effect with --executor=slurm"),
        (["cluster.spot"], "local", "--cluster.spot has no effect"),
        (["cluster.image"], "skypilot", "it is for --executor=jobset"),
        (["cluster.infra"], "jobset", "it is for --executor=skypilot"),
        (["max_jobs"], "jobset", "whose jobs are started by another tool"),
        (["retry_failed"], "skypilot", "whose jobs are started by another tool"),
        (["config", "device"], "local", "--device has no effect for jobs on this machine"),
    ],
)
def test_flags_without_effect_are_refused(given, executor, sentence):
    with pytest.raises(UserError, match=sentence):
        check_flags(["workdir", *given], executor)


@pytest.mark.parametrize(
    ("given", "executor"),
    [
        (["config", "seeds", "set", "max_jobs", "cores_per_job", "retries"], "local"),
        (["config", "retry_failed"], "local"),
        (["config", "dry_run", "device", "devices_per_job", "max_jobs"], "local"),
        (["config", "dry_run", "executor", "slurm.nodes", "slurm.time", "device"], "slurm"),
        (["config", "executor", "slurm.extra", "device", "max_jobs", "retry_failed"], "slurm"),
        (["cancel", "executor", "slurm.partition"], "slurm"),
        (["report", "baseline"], "local"),
        (["config", "executor", "out", "cluster.storage", "cluster.image", "device"], "jobset"),
        (["config", "executor", "out", "cluster.infra", "cluster.spot", "retries"], "skypilot"),
        (["status"], "local"),
        (["collect"], "local"),
    ],
)
def test_flags_with_an_effect_are_accepted(given, executor):
    check_flags(["workdir", *given], executor)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--status", "--cancel"], "--status and --cancel are different commands"),
        (["--slurm.nodes=2"], "--slurm.nodes has no effect with --executor=local"),
        (["--status", "--noretry_failed"], "has no sweep"),  # a switch that is off is not given
        (["--retries=-1"], "--retries=-1: -1 is not a non-negative integer"),
    ],
)
def test_the_command_line_is_checked(tmp_path, flags, sentence):
    command = [sys.executable, "launch/sweep.py", f"--workdir={tmp_path}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
