"""The flags of launch/sweep.py for clusters."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import fake_sweeps

from invnext_jax.sweeps.sweep_folder import SweepFolder

ROOT = Path(__file__).parents[2]
# Prints the request and the options of SLURM that the command line gives.
SCRIPT = """
import dataclasses, json, sys
from absl import flags
from invnext_jax.sweeps import command_line
from launch import sweep  # defines the flags

flags.FLAGS(sys.argv)
command_line.SlurmExecutor = lambda options, max_jobs: (options, max_jobs)
options, max_jobs = command_line._make_executor()
request = dataclasses.asdict(command_line._read_request())
print(json.dumps([request, dataclasses.asdict(options), max_jobs]))
"""


def test_options_of_slurm():
    given = ["--config=configs/sweeps/lr.py:tiny", "--workdir=w", "--executor=slurm"]
    given += ["--slurm.nodes=8", "--slurm.gpus_per_node=4", "--slurm.cpus_per_task=16"]
    given += ["--slurm.partition=gpu", "--slurm.time=12:00:00", "--slurm.extra=--constraint=ib"]
    given += ["--slurm.setup=module load cuda", "--max_jobs=3", "--device=h100"]
    command = [sys.executable, "-c", SCRIPT, *given]
    output = subprocess.check_output(command, cwd=ROOT, text=True)
    request, options, max_jobs = json.loads(output.splitlines()[-1])
    assert (request["hosts_per_job"], request["devices_per_job"]) == (8, 4)
    assert (request["cores_per_job"], request["device"], request["executor"]) == (
        16,
        "h100",
        "slurm",
    )
    assert (options["partition"], options["time"], options["save_seconds"]) == (
        *("gpu", "12:00:00", 180),
    )
    assert (options["extra"], options["setup"]) == (["--constraint=ib"], ["module load cuda"])
    assert max_jobs == 3


def test_a_sweep_of_slurm_is_not_continued_here(tmp_path):
    folder = tmp_path / "sweep"
    sweep = fake_sweeps.make_sweep(folder)
    SweepFolder(folder).write_sweep(dataclasses.replace(sweep, executor="slurm"))
    for action in ([], ["--cancel"], ["--config=configs/sweeps/lr.py:tiny"]):
        command = [sys.executable, "launch/sweep.py", f"--workdir={folder}", *action]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert "was started with --executor=slurm: repeat this flag" in done.stderr
    assert not (folder / "history.jsonl").exists()
