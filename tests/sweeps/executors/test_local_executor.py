"""Jobs on this machine do not share cores, GPUs or memory."""

import json
import os
import sys
import time

import pytest

from invnext_jax.errors import UserError
from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.job import Job, JobTooLargeError, Phase, Resources

# Writes the environment of the job, then waits until a file exists.
SCRIPT = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
names = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "EXTRA")
seen = {name: os.environ.get(name) for name in names}
seen["cores"] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
part = folder / "seen.part"
part.write_text(json.dumps(seen))
part.rename(folder / "seen.json")
while not (folder / "end").exists():
    time.sleep(0.01)
sys.exit(int((folder / "end").read_text()))
"""


@pytest.fixture
def make_job(tmp_path):
    def make(name, **resources):
        workdir = tmp_path / name
        workdir.mkdir()
        return Job(
            name=name,
            command=(sys.executable, "-c", SCRIPT, str(workdir)),
            folder=tmp_path,
            workdir=workdir,
            log=tmp_path / "logs" / f"{name}.log",
            environment={"EXTRA": "yes"},
            resources=Resources(**resources),
        )

    return make


def read_seen(job):
    wait_for((job.workdir / "seen.json").exists)
    return json.loads((job.workdir / "seen.json").read_text())


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(executor, job, code=0):
    """Lets a job end and returns the last poll."""
    part = job.workdir / "end.part"
    part.write_text(str(code))
    part.rename(job.workdir / "end")
    return wait_for_end(executor, job)


def wait_for_end(executor, job):
    """Returns the poll of a job that has ended."""
    polls = []
    wait_for(lambda: polls.append(executor.poll(job, None)) or polls[-1].phase is Phase.ENDED)
    return polls[-1]


def test_jobs_have_different_gpus(make_job):
    executor = LocalExecutor(Machine(cores=tuple(range(8)), gpus=("0", "1", "2", "GPU-8f")))
    jobs = [make_job(name, devices=2, cores=1) for name in ("a", "b")]
    third = make_job("c", devices=1, cores=1)
    for job in jobs:
        assert executor.has_room(job)
        executor.submit(job)
    assert not executor.has_room(third)
    assert [read_seen(job)["CUDA_VISIBLE_DEVICES"] for job in jobs] == ["0,1", "2,GPU-8f"]
    assert read_seen(jobs[0])["JAX_PLATFORMS"] == os.environ.get("JAX_PLATFORMS")
    finish(executor, jobs[1])
    assert executor.has_room(third)
    executor.submit(third)
    assert read_seen(third)["CUDA_VISIBLE_DEVICES"] == "2"
    for job in (jobs[0], third):
        finish(executor, job)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_jobs_have_different_cores(make_job):
    cores = tuple(sorted(os.sched_getaffinity(0)))
    executor = LocalExecutor(Machine(cores=cores))
    jobs = [make_job(str(core), cores=1) for core in cores]
    for job in jobs:
        assert executor.has_room(job)
        executor.submit(job)
    assert not executor.has_room(make_job("more", cores=1))
    assert [read_seen(job)["cores"] for job in jobs] == [[core] for core in cores]
    assert read_seen(jobs[0])["JAX_PLATFORMS"] == "cpu"
    assert read_seen(jobs[0])["EXTRA"] == "yes"
    assert os.sched_getaffinity(0) == set(cores)
    for job in jobs:
        finish(executor, job)


def test_memory_limits_the_number_of_jobs(make_job):
    executor = LocalExecutor(Machine(cores=tuple(range(8)), memory=10e9, total_memory=64e9))
    first, second = make_job("a", memory=6e9), make_job("b", memory=6e9)
    executor.submit(first)
    assert not executor.has_room(second)
    finish(executor, first)
    large = make_job("c", memory=60e9)
    assert executor.has_room(large)  # alone: other programs may end
    executor.submit(large)
    assert not executor.has_room(second)
    too_large = make_job("d", memory=65e9)
    assert executor.has_room(too_large)  # the refusal does not wait for other jobs
    with pytest.raises(JobTooLargeError, match="needs 65.0 GB .* this machine has 64.0 GB: reduce"):
        executor.submit(too_large)
    assert not too_large.log.exists()
    finish(executor, large)


def test_number_of_jobs_can_be_limited(make_job):
    executor = LocalExecutor(Machine(cores=tuple(range(8))), max_jobs=1)
    first = make_job("a")
    executor.submit(first)
    assert not executor.has_room(make_job("b"))
    finish(executor, first)


def test_a_job_that_is_too_large_is_a_user_error(make_job):
    executor = LocalExecutor(Machine(cores=(0,), gpus=("0",)))
    for job, what in ((make_job("a", devices=2), "2 GPUs"), (make_job("b", cores=3), "3 cores")):
        assert executor.has_room(job)
        with pytest.raises(UserError, match=f"needs {what}, and this machine has 1"):
            executor.submit(job)


def test_exit_codes_and_signals_are_reported(make_job):
    executor = LocalExecutor(Machine(cores=(0, 1, 2)))
    jobs = [make_job(name) for name in "abc"]
    for job in jobs:
        executor.submit(job)
        read_seen(job)
    assert finish(executor, jobs[0], 7).exit_code == 7
    for job, force, code in ((jobs[1], False, -15), (jobs[2], True, -9)):
        executor.cancel(job, None, force=force)
        assert wait_for_end(executor, job).exit_code == code


def test_jobs_of_another_executor_are_found_by_their_lock(make_job):
    machine = Machine(cores=(0, 1), gpus=("0", "1"))
    first, second = LocalExecutor(machine), LocalExecutor(machine)
    job = make_job("a", devices=2)
    first.submit(job)
    assert second.poll(job, None).phase is Phase.RUNNING
    assert not second.has_room(make_job("b", devices=1))  # its GPUs are known from the lock
    assert dict(second.submit(job))["gpus"] == ("0", "1")  # it is not started a second time
    finish(first, job)
    assert second.poll(job, None).phase is Phase.ENDED
    assert job.log.read_text().count("$ ") == 1
