"""What the runner and --status say about jobs that are refused, found running, or stopped."""

import dataclasses
import json

import pytest
from fake_sweeps import STEPS, make_sweep, run

from invnext_jax.sweeps import status_table
from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedArm
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder


def list_starts(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [entry["job"] for entry in map(json.loads, lines) if entry["event"] == "start"]


def test_a_job_that_does_not_fit_in_memory_is_refused_and_others_continue(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(0,))
    planned = sweep.jobs["s2-a0"]
    needed = dataclasses.replace(planned.job.resources, memory=30e9)
    sweep.jobs["s2-a0"] = dataclasses.replace(
        planned, job=dataclasses.replace(planned.job, resources=needed)
    )
    executor = LocalExecutor(Machine(cores=(0, 1), memory=8e9, total_memory=24e9))
    lines = []
    folder = SweepFolder(tmp_path)
    states = Runner(folder, sweep, executor, RunOptions(poll_seconds=0.02), log=lines.append).run()
    assert states["s2-a0"].status is Status.FAILED
    assert "needs 30.0 GB of memory" in states["s2-a0"].reason
    assert sorted(list_starts(tmp_path)) == ["eval-b0", "s1-0", "s2-b0"]
    assert any("s2-a0 failed: it needs 30.0 GB" in line for line in lines)
    assert "eval-a0  blocked by a failed job" in status_table.format_status(folder, sweep)


@pytest.mark.parametrize("saved", [True, False])
def test_running_jobs_of_a_killed_command_are_reported(tmp_path, saved):
    """The first command was killed after it had started a job, with or without saving this."""
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",), seconds=0.1)
    first = LocalExecutor(Machine(cores=(0,)))
    handle = first.submit(sweep.jobs["s1-0"].job)
    state = JobState(Status.RUNNING, handle=handle) if saved else JobState(Status.QUEUED)
    SweepFolder(tmp_path).write_state("s1-0", state)
    states, lines = run(tmp_path, sweep)
    assert first.poll(sweep.jobs["s1-0"].job, handle).exit_code == 0
    assert lines[0].startswith("not started again, because an earlier command started them")
    assert lines[0].endswith("they have not ended: s1-0")
    assert {state.status for state in states.values()} == {Status.FINISHED}
    assert list_starts(tmp_path).count("s1-0") == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (Status.RUNNING, f"running, last logged step 3 of {STEPS} "),
        (Status.STOPPED, f"stopped, continues from step 2 of {STEPS} "),
    ],
)
def test_status_says_which_step_it_shows(tmp_path, status, text):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",))
    workdir = sweep.jobs["s1-0"].job.workdir
    (workdir / "checkpoints/2").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    folder = SweepFolder(tmp_path)
    folder.write_state("s1-0", JobState(status))
    assert text in status_table.format_status(folder, sweep)


def test_status_says_that_running_jobs_may_have_ended_without_the_command(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",))
    folder = SweepFolder(tmp_path)
    folder.write_state("s1-0", JobState(Status.RUNNING))
    text = status_table.format_status(folder, sweep)
    assert "s1-0     running, no step is logged yet  a (seed 0)\n" in text
    assert text.endswith("does not run. Jobs that it left running may have ended since.")
    with folder.lock():
        assert status_table.format_status(folder, sweep).endswith("The sweep command runs.")


@pytest.mark.parametrize(("count", "text"), [(0, "0 arms"), (1, "1 arm"), (2000, "2,000 arms")])
def test_nouns_are_counted(count, text):
    assert status_table.count_noun(count, "arm") == text


def test_names_of_arms_have_the_seeds_that_share_a_job():
    arms = [PlannedArm("a", "", seed, False, {}, {"s": "x", "t": f"y{seed}"}) for seed in (0, 1)]
    arms.append(PlannedArm("b", "", None, False, {}, {"s": "x"}))
    sweep = ExpandedSweep("test", tuple(arms), {}, {})
    assert sweep.arm_names("x") == ["a (seeds 0, 1)", "b"]
    assert sweep.arm_names("y1") == ["a (seed 1)"]
