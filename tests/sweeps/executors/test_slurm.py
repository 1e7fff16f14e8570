"""Jobs on a real SLURM cluster of two nodes. Fake commands give the rare answers of SLURM."""

import dataclasses
import json
import os
import subprocess
import threading
import time

import fake_sweeps
import pytest
from fake_sweeps import STEPS

from invnext_jax.errors import UserError
from invnext_jax.sweeps.executors.slurm import SlurmExecutor
from invnext_jax.sweeps.executors.slurm_script import SlurmOptions, make_script, sbatch_flags
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.job import Phase, Resources
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import Status, SweepFolder


def make_job(folder, name, kind=Kind.TRAIN, source=None, **environment):
    """A fake training of 1.5 s, or an evaluation of one."""
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


def test_script_has_the_options_of_the_sweep(tmp_path):
    job = make_job(tmp_path, "s1", NOTE="it's a test").job
    job = dataclasses.replace(
        job,
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
    executor, job = make_executor(), make_job(tmp_path, "s1").job
    executor.submit(job)
    (fake_slurm / "squeue.err").write_text("slurm_load_jobs error: Unable to contact slurm\n")
    assert executor.poll(job, None).phase is Phase.QUEUED
    assert "squeue fails (slurm_load_jobs error: Unable to contact slurm)" in caplog.text


def test_job_is_submitted_again_if_the_queue_was_full(fake_slurm, tmp_path):
    executor, job = make_executor(), make_job(tmp_path, "s1").job
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
        ("COMPLETED", {"exit_code": 0, "stopped": False}, (0, "", True)),
        ("FAILED", {"exit_code": 3, "stopped": False}, (3, "", False)),
        ("FAILED", {"exit_code": 137, "stopped": False}, (-9, "", False)),
        ("COMPLETED", {"exit_code": 1, "stopped": True}, (1, "", True)),
        ("COMPLETED", None, (None, "", False)),  # after the grace period
    ],
)
def test_end_of_a_job(fake_slurm, tmp_path, state, record, expected):
    job = make_job(tmp_path, "s1").job
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
    jobs = [make_job(tmp_path, name).job for name in "ab"]
    assert executor.has_room(jobs[0])
    name = executor.submit(jobs[0])["name"]
    assert not executor.has_room(jobs[1])
    (fake_slurm / "squeue.out").write_text(f"7|CANCELLED|None|{name}\n")
    executor.poll(jobs[0], None)
    assert executor.has_room(jobs[1])


def test_held_job_is_logged(fake_slurm, tmp_path, caplog):
    executor, job = make_executor(), make_job(tmp_path, "s1").job
    name = executor.submit(job)["name"]
    (fake_slurm / "squeue.out").write_text(f"7|PENDING|launch failed requeued held|{name}\n")
    assert executor.poll(job, None).phase is Phase.QUEUED
    assert "`scontrol release 7` lets it start" in caplog.text
