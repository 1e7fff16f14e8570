"""Sweeps of fake jobs: killed commands resume, nothing runs twice, failures are isolated."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_sweeps import FAKE, STEPS, make_sweep, run

from invnext_jax.sweeps import runner as runner_lib
from invnext_jax.sweeps import status_table
from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.report import sweep_page
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder

SERVER = Path(__file__).with_name("sweep_server.py")


def read_history(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def events(folder, event):
    return [entry["job"] for entry in read_history(folder) if entry["event"] == event]


@pytest.fixture(scope="module")
def server():
    """A process that starts runners; see sweep_server.py."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"

    def ask(line):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait(timeout=10)
    process.stdout.close()


def test_all_jobs_run_once_and_in_order(tmp_path):
    sweep = make_sweep(tmp_path)
    states, lines = run(tmp_path, sweep)
    assert {state.status for state in states.values()} == {Status.FINISHED}
    started, ended = events(tmp_path, "start"), events(tmp_path, "end")
    assert sorted(started) == sorted(sweep.jobs)
    entries = [(entry["job"], entry["event"]) for entry in read_history(tmp_path)]
    for name, planned in sweep.jobs.items():
        for source in planned.job.dependencies:
            assert entries.index((source, "end")) < entries.index((name, "start"))
    assert lines[-1].startswith(f"[{len(ended)}/{len(sweep.jobs)}]")


def test_finished_jobs_do_not_run_again(tmp_path):
    sweep = make_sweep(tmp_path)
    run(tmp_path, sweep)
    before = read_history(tmp_path)
    states, lines = run(tmp_path, sweep)
    assert read_history(tmp_path) == before and not lines
    assert {state.status for state in states.values()} == {Status.FINISHED}


def test_outputs_decide_if_the_states_are_lost(tmp_path):
    sweep = make_sweep(tmp_path)
    run(tmp_path, sweep)
    before = read_history(tmp_path)
    for path in (tmp_path / "states").iterdir():
        path.write_text("{damaged")
    run(tmp_path, sweep)
    assert read_history(tmp_path) == before


def test_removed_checkpoints_are_not_trained_again_unless_they_are_needed(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(0,))
    run(tmp_path, sweep)
    before = len(events(tmp_path, "start"))
    for name in ("s1-0", "s2-a0"):
        (tmp_path / "runs" / name / "checkpoints" / str(STEPS)).rmdir()
    run(tmp_path, sweep)
    assert len(events(tmp_path, "start")) == before
    (tmp_path / "runs/eval-a0/results.json").unlink()
    run(tmp_path, sweep)
    assert sorted(events(tmp_path, "start")[before:]) == ["eval-a0", "s1-0", "s2-a0"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_sweep_ends_with_the_same_results(tmp_path, server, seed):
    """The command is killed five times at random, with or without its jobs, and one job fails."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run(undisturbed, make_sweep(undisturbed, evaluate_stage1=True))
    sweep = make_sweep(disturbed, evaluate_stage1=True)
    assert len(sweep.jobs) == 12
    (disturbed / "runs").mkdir()
    (disturbed / "runs/s2-b1.fail").touch()  # its first attempt fails
    rng = random.Random(seed)
    for _ in range(5):
        pid = server(f"run {disturbed} 2")
        time.sleep(rng.uniform(0.02, 0.4))
        os.kill(pid, signal.SIGKILL)
        assert server(f"wait {pid}") in (-signal.SIGKILL, 0)
        if rng.random() < 0.5:
            kill_jobs(disturbed)
    assert server(f"wait {server(f'run {disturbed} 2')}") == 0
    folder = SweepFolder(disturbed)
    assert {folder.read_state(name).status for name in sweep.jobs} == {Status.FINISHED}
    tables = []
    for path in (undisturbed, disturbed):
        sweep_page.write_tables(SweepFolder(path), path / "table.csv")
        tables.append((path / "table.csv").read_text())
    assert tables[0] == tables[1] and tables[0].count("\n") == 4
    assert_no_overlap(disturbed)
    assert sorted(events(disturbed, "end")) == sorted(sweep.jobs)  # each job ended once


def kill_jobs(folder):
    """Kills the jobs that survived their runner, as a crash of the machine does."""
    for entry in read_history(folder) if (folder / "history.jsonl").exists() else ():
        if is_alive(entry["pid"]):
            os.kill(entry["pid"], signal.SIGKILL)


def is_alive(pid):
    try:
        return f"{FAKE}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def assert_no_overlap(folder):
    """Checks that processes of a job never ran at the same time: their events do not interleave."""
    by_job = {}
    for entry in read_history(folder):
        by_job.setdefault(entry["job"], []).append(entry["pid"])
    for name, pids in by_job.items():
        blocks = [pid for pid, before in zip(pids, [None, *pids], strict=False) if pid != before]
        assert len(blocks) == len(set(blocks)), name


def test_jobs_of_a_killed_command_are_adopted(tmp_path, server):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",), seconds=0.1)
    pid = server(f"run {tmp_path} 2")
    wait_for(lambda: (tmp_path / "history.jsonl").exists() and events(tmp_path, "step"))
    os.kill(pid, signal.SIGKILL)
    server(f"wait {pid}")
    assert SweepFolder(tmp_path).read_state("s1-0").is_active
    states, _ = run(tmp_path, sweep)
    assert states["eval-a0"].status is Status.FINISHED
    assert events(tmp_path, "start") == ["s1-0", "s2-a0", "eval-a0"]


def test_a_job_is_adopted_if_its_handle_was_not_saved(tmp_path, server):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",), seconds=0.1)
    pid = server(f"run {tmp_path} 2")
    wait_for(lambda: (tmp_path / "history.jsonl").exists() and events(tmp_path, "step"))
    os.kill(pid, signal.SIGKILL)
    server(f"wait {pid}")
    SweepFolder(tmp_path).write_state("s1-0", JobState(Status.QUEUED))
    run(tmp_path, sweep)
    assert events(tmp_path, "start") == ["s1-0", "s2-a0", "eval-a0"]


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failed_job_is_retried_and_others_continue(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path)
    monkeypatch.setenv("FAKE_FAIL", "s2-a0")
    states, lines = run(tmp_path, sweep, retries=2)
    assert states["s2-a0"] == dataclasses.replace(
        states["s2-a0"], status=Status.FAILED, failures=3, reason="exit code 1"
    )
    assert events(tmp_path, "start").count("s2-a0") == 3
    assert states["eval-a0"].status is Status.WAITING
    others = [states[name].status for name in sweep.jobs if name not in ("s2-a0", "eval-a0")]
    assert set(others) == {Status.FINISHED}
    text = status_table.format_status(SweepFolder(tmp_path), sweep)
    assert "failed: exit code 1" in text and "    it fails, as the test asked" in text
    assert "blocked by a failed job" in text
    assert any("failed: exit code 1" in line for line in lines)

    run(tmp_path, sweep)
    assert events(tmp_path, "start").count("s2-a0") == 3
    monkeypatch.delenv("FAKE_FAIL")
    assert runner_lib.retry_failed(SweepFolder(tmp_path), sweep) == ["s2-a0"]
    states, _ = run(tmp_path, sweep)
    assert {state.status for state in states.values()} == {Status.FINISHED}


@pytest.mark.parametrize(("code", "reason"), [(2, "exit code 2"), (3, "non-finite")])
def test_errors_that_repeat_are_not_retried(tmp_path, monkeypatch, code, reason):
    sweep = make_sweep(tmp_path, seeds=(0,))
    monkeypatch.setenv("FAKE_FAIL", "s2-a0")
    monkeypatch.setenv("FAKE_EXIT_CODE", str(code))
    states, _ = run(tmp_path, sweep, retries=5)
    assert states["s2-a0"].status is Status.FAILED and states["s2-a0"].reason == reason
    assert events(tmp_path, "start").count("s2-a0") == 1


def test_early_ends_are_failures_unless_the_job_saved_a_later_step(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",))
    monkeypatch.setenv("FAKE_STOP_AFTER", "2")
    states, _ = run(tmp_path, sweep)
    assert {(state.status, state.failures) for state in states.values()} == {(Status.FINISHED, 0)}
    assert events(tmp_path, "start") == ["s1-0"] * 3 + ["s2-a0"] * 3 + ["eval-a0"]

    stuck = make_sweep(tmp_path / "stuck", seeds=(0,), arms=("a",))
    monkeypatch.setenv("FAKE_STOP_AFTER", "0")
    states, _ = run(tmp_path / "stuck", stuck, retries=2)
    assert (states["s1-0"].status, states["s1-0"].failures) == (Status.FAILED, 3)
    assert states["s1-0"].reason == "exit code 0 before it was finished"
    assert events(tmp_path / "stuck", "start") == ["s1-0"] * 3


@pytest.mark.parametrize("name", ["s2-a0", "eval-a0"])
def test_a_finished_job_with_nan_has_failed(tmp_path, monkeypatch, name):
    sweep = make_sweep(tmp_path, seeds=(0,))
    monkeypatch.setenv("FAKE_NAN", name)
    states, _ = run(tmp_path, sweep, retries=5)
    assert states[name].status is Status.FAILED and states[name].reason == "non-finite"
    assert states["eval-b0"].status is Status.FINISHED
    assert events(tmp_path, "start").count(name) == 1
    monkeypatch.delenv("FAKE_NAN")
    runner_lib.retry_failed(SweepFolder(tmp_path), sweep)
    states, _ = run(tmp_path, sweep)
    assert {state.status for state in states.values()} == {Status.FINISHED}
    assert (tmp_path / f"runs/{name}.non-finite-1").is_dir()


@pytest.mark.parametrize("by_file", [False, True])
def test_stop_lets_jobs_save_and_the_next_command_continues(tmp_path, by_file):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",), seconds=0.05)
    folder = SweepFolder(tmp_path)

    def has_step():
        return (tmp_path / "history.jsonl").exists() and bool(events(tmp_path, "step"))

    def should_stop():
        if by_file and has_step():
            folder.request_stop()
        return has_step() and not by_file

    states, lines = run(tmp_path, sweep, should_stop=should_stop)
    assert states["s1-0"].status is Status.STOPPED and not states["s1-0"].failures
    assert any(line == "stopping s1-0, after a save" for line in lines)
    done = [entry["step"] for entry in read_history(tmp_path) if entry["event"] == "step"]
    folder.clear_stop_request()
    run(tmp_path, sweep)
    steps = [
        entry["step"]
        for entry in read_history(tmp_path)
        if entry["event"] == "step" and entry["job"] == "s1-0"
    ]
    assert len(done) < STEPS and steps == list(range(1, STEPS + 1))


def test_jobs_of_a_killed_command_can_be_canceled(tmp_path, server):
    sweep = make_sweep(tmp_path, seeds=(0,), arms=("a",), seconds=0.1)
    pid = server(f"run {tmp_path} 2")
    wait_for(lambda: (tmp_path / "history.jsonl").exists() and events(tmp_path, "step"))
    os.kill(pid, signal.SIGKILL)
    server(f"wait {pid}")
    runner = Runner(
        SweepFolder(tmp_path), sweep, LocalExecutor(Machine(cores=(0,))), RunOptions(), log=print
    )
    runner.restore_states()
    runner.stop()
    assert SweepFolder(tmp_path).read_state("s1-0").status is Status.STOPPED
    assert not any(is_alive(entry["pid"]) for entry in read_history(tmp_path))


def test_second_command_in_a_folder_is_refused(tmp_path):
    make_sweep(tmp_path)
    folder = SweepFolder(tmp_path)
    with folder.lock():
        with pytest.raises(runner_lib.UserError, match="another sweep command runs"):
            with SweepFolder(tmp_path).lock():
                pass
        assert folder.is_locked()
    assert not folder.is_locked()
