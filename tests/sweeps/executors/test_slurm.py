"""Jobs on a real SLURM cluster of two nodes."""

import dataclasses
import json
import threading
import time

import fake_sweeps
import pytest
from fake_sweeps import STEPS

from invnext_jax.errors import UserError
from invnext_jax.sweeps.executors.slurm import SlurmExecutor
from invnext_jax.sweeps.executors.slurm_script import SlurmOptions
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.job import Phase
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import Status, SweepFolder


def make_job(folder, name, kind=Kind.TRAIN, source=None, **environment):
    """Returns a job that imitates a training of 1.5 s, or the evaluation of such a training."""
    sources = [source] if source else []
    planned = fake_sweeps.make_job(folder, name, kind, sources, value=0.5, seconds=0.25)
    environment = {**planned.job.environment, **environment}
    return dataclasses.replace(
        planned, job=dataclasses.replace(planned.job, environment=environment)
    )


def make_executor(**options):
    return SlurmExecutor(SlurmOptions(**options), refresh_seconds=0.2, grace_seconds=2.0)


class RunningSweep:
    """A runner in a thread."""

    def __init__(self, folder, jobs, retries=0):
        self.folder, self.lines, self._stop = folder, [], threading.Event()
        sweep = ExpandedSweep("fake", (), {}, {planned.job.name: planned for planned in jobs})
        options = RunOptions(retries=retries, poll_seconds=0.1, stop_seconds=30.0)
        self._runner = Runner(
            SweepFolder(folder),
            sweep,
            make_executor(),
            options,
            self._stop.is_set,
            self.lines.append,
        )
        self.states = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        self.states = self._runner.run()

    def stop(self):
        self._stop.set()

    def wait(self):
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), self.describe()
        return {name: state.status for name, state in self.states.items()}

    def describe(self):
        logs = [path.read_text() for path in (self.folder / "logs").glob("*.log")]
        return "\n".join(self.lines + logs)

    def events(self, event, job):
        try:
            lines = (self.folder / "history.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        records = [json.loads(line) for line in lines]
        return [r for r in records if (r["event"], r["job"]) == (event, job)]

    def wait_for_steps(self, job, count):
        deadline = time.monotonic() + 30
        while len(self.events("step", job)) < count:
            assert time.monotonic() < deadline, self.describe()
            time.sleep(0.05)

    def wait_for_starts(self, job, count, cluster):
        deadline = time.monotonic() + 30
        while len(self.events("start", job)) < count:
            assert time.monotonic() < deadline, self.describe()
            cluster.start_now()
            time.sleep(0.2)


def steps(sweep, job):
    return [record["step"] for record in sweep.events("step", job)]


def test_requeued_job_resumes_and_its_evaluation_is_collected(slurm, tmp_path):
    jobs = [make_job(tmp_path, "s1"), make_job(tmp_path, "probe", Kind.EVALUATE, "s1")]
    sweep = RunningSweep(tmp_path, jobs)
    sweep.wait_for_steps("s1", 2)
    (number,) = slurm.jobs("RUNNING")
    slurm.call("scontrol", "requeue", number)
    sweep.wait_for_starts("s1", 2, slurm)
    assert sweep.wait() == {"s1": Status.FINISHED, "probe": Status.FINISHED}
    assert steps(sweep, "s1") == list(range(1, STEPS + 1))  # none is repeated, none is missing
    assert "stopped after step" in jobs[0].job.log.read_text()
    results = json.loads((tmp_path / "runs/probe/results.json").read_text())
    assert results["rows"][0]["value"] == pytest.approx(1 / 1.5)
    assert [state.failures for state in sweep.states.values()] == [0, 0]


def test_job_requeues_itself_near_its_time_limit(slurm, tmp_path):
    sweep = RunningSweep(tmp_path, [make_job(tmp_path, "s1")])
    sweep.wait_for_steps("s1", 2)
    (number,) = slurm.jobs("RUNNING")
    # SLURM sends this signal. Its time limits are whole minutes, too long for a test.
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    sweep.wait_for_starts("s1", 2, slurm)
    assert slurm.jobs("RUNNING") == [number]
    assert sweep.wait() == {"s1": Status.FINISHED}
    assert steps(sweep, "s1") == list(range(1, STEPS + 1))
    assert sum("submitted" in line for line in sweep.lines) == 1


def test_job_that_saves_in_the_grace_period_is_submitted_again(slurm, tmp_path):
    sweep = RunningSweep(tmp_path, [make_job(tmp_path, "s1")])
    sweep.wait_for_steps("s1", 2)
    (number,) = slurm.jobs("RUNNING")
    slurm.call("scancel", "--signal=TERM", number)  # as SLURM does; the batch script gets none
    assert sweep.wait() == {"s1": Status.FINISHED}
    assert steps(sweep, "s1") == list(range(1, STEPS + 1))
    assert sweep.states["s1"].failures == 0
    assert sum("submitted" in line for line in sweep.lines) == 2


def test_job_that_ends_early_without_progress_fails(slurm, tmp_path):
    sweep = RunningSweep(tmp_path, [make_job(tmp_path, "s1", FAKE_STOP_AFTER="0")], retries=1)
    assert sweep.wait() == {"s1": Status.FAILED}
    assert sweep.states["s1"].reason == "exit code 0 before it was finished"
    assert len(sweep.events("start", "s1")) == 2


def test_restarted_sweep_finds_its_job_by_name(slurm, tmp_path):
    planned = make_job(tmp_path, "s1")
    make_executor().submit(planned.job)
    folder = SweepFolder(tmp_path)
    folder.write_state("s1", dataclasses.replace(folder.read_state("s1"), status=Status.QUEUED))
    sweep = RunningSweep(tmp_path, [planned])  # the state has no handle
    assert sweep.wait() == {"s1": Status.FINISHED}
    assert len(sweep.events("start", "s1")) == 1
    assert not any("submitted" in line for line in sweep.lines)


def test_canceled_jobs_save_and_continue_later(slurm, tmp_path):
    jobs = [make_job(tmp_path, name) for name in ("a", "b")]
    sweep = RunningSweep(tmp_path, jobs)
    sweep.wait_for_steps("a", 2)
    sweep.stop()
    assert set(sweep.wait().values()) == {Status.STOPPED}
    assert not slurm.jobs("PENDING,RUNNING")
    assert "stopped after step" in jobs[0].job.log.read_text()
    sweep = RunningSweep(tmp_path, jobs)
    assert set(sweep.wait().values()) == {Status.FINISHED}
    assert steps(sweep, "a") == list(range(1, STEPS + 1))


def test_waiting_job_is_canceled(slurm, tmp_path):
    first, second = make_executor(extra=("--exclusive", "--nodes=2")), make_executor()
    jobs = [make_job(tmp_path, name).job for name in ("a", "b")]
    first.submit(jobs[0])
    second.submit(jobs[1])
    assert second.poll(jobs[1], None).phase is Phase.QUEUED
    second.cancel(jobs[1], None)
    poll = second.poll(jobs[1], None)
    assert (poll.phase, poll.reason) == (Phase.ENDED, "canceled in SLURM")
    first.cancel(jobs[0], None, force=True)


def test_failed_job_reports_its_exit_code(slurm, tmp_path):
    failing = make_job(tmp_path, "s1", FAKE_FAIL="s1", FAKE_EXIT_CODE="2")
    sweep = RunningSweep(tmp_path, [failing], retries=3)
    assert sweep.wait() == {"s1": Status.FAILED}
    assert sweep.states["s1"].reason == "exit code 2"
    assert len(sweep.events("start", "s1")) == 1  # the error of a user is not repeated
    assert "it fails, as the test asked" in failing.job.log.read_text()


def test_rejected_job_is_an_error(slurm, tmp_path):
    with pytest.raises(UserError, match=r"rejects the job s1: Batch.*Invalid partition.*--slurm"):
        make_executor(partition="missing").submit(make_job(tmp_path, "s1").job)
