"""Damaged files in the folder of a sweep are one-sentence errors, and never block."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
from fake_sweeps import FAKE, make_job, make_sweep

from invnext_jax.errors import UserError
from invnext_jax.sweeps import commands, expansion, status_table
from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.runner import RunOptions
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder


@pytest.fixture
def sweep(tmp_path):
    return make_sweep(tmp_path)


@pytest.fixture
def folder(sweep, tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write_sweep(sweep)
    return folder


def change_job(**fields):
    return lambda tree: tree["jobs"][-1].update(fields)


# Names that forge lines, cannot be encoded, or fill the memory.
NAMES = ("", "a\nb", "a\u2028b", "a\x1b[2Jb", "a\ud800", "n" * 501)


@pytest.mark.parametrize(
    "change",
    [
        change_job(dependencies=["none"]),
        change_job(dependencies=[[]]),
        change_job(command=[1]),
        change_job(total_steps="3"),
        change_job(name="n" * 300),
        lambda tree: tree.update(folder=""),
        lambda tree: tree["jobs"][0].update(command=[f"--a={tree['folder']}/"] * 9),
        change_job(resources={"cores": "1"}),
        change_job(environment={"A": 1}),
        lambda tree: tree["jobs"][0].update(dependencies=[tree["jobs"][1]["name"]]),
        lambda tree: tree["jobs"][0].update(dependencies=[tree["jobs"][0]["name"]]),
        lambda tree: tree.update(columns=[]),
        lambda tree: tree.update(executor=1),
        lambda tree: tree.update(columns={"a": {"step": 1}}),
        lambda tree: tree["arms"][0].update(name=1),
        lambda tree: tree["arms"][0].update(jobs={"stage1": "none"}),
        lambda tree: tree["arms"][0].update(reference={"x": math.nan}),
        lambda tree: tree["arms"].append(None),
        lambda tree: tree["jobs"].append(tree["jobs"][0]),
        change_job(total_steps=10**4000),
        *(lambda tree, n=n: tree["arms"][0].update(name=n) for n in NAMES),
        *(lambda tree, n=n: tree["arms"][0].update(group=n) for n in NAMES[1:]),
        *(lambda tree, n=n: tree["columns"].update({n: {"step": "stage1"}}) for n in NAMES),
        lambda tree: tree["arms"][0].update(jobs={"s" * 501: tree["jobs"][0]["name"]}),
        lambda tree: tree["arms"][0].update(seed=10**4000),
        lambda tree: tree.update(arms=tree["arms"][:1] * (expansion.MAX_ARMS + 1)),
    ],
)
def test_cycles_and_wrong_types_are_user_errors(folder, change):
    path = folder.path / "sweep.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="is damaged .* repeat the command that started the sweep"):
        commands.show_status(folder)


@pytest.mark.parametrize(
    "fields",
    [
        *({"failures": "1"}, {"reason": 1}, {"handle": []}, {"started": None}, {"other": 1}),
        *({"saved_step": "1"}, {"status": "paused"}, {"failures": int("9" * 4300)}),
        *({"failures": -1}, {"saved_step": 2**63}, {"reason": "\ud800"}),
    ],
)
def test_unreadable_states_are_reported_and_count_as_waiting(folder, sweep, fields, caplog):
    for name in sweep.jobs:
        folder.write_state(name, JobState(Status.FAILED))
        path = folder.path / "states" / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert f"{len(sweep.jobs)} waiting" in commands.show_status(folder)
    folder.read_states(sweep)
    reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == len(sweep.jobs)  # once for each file
    assert all("damaged or of another version" in text for text in reports)
    assert all(any(f"{name}.json" in text for text in reports) for name in sweep.jobs)


def test_reasons_are_short_lines(folder, sweep):
    name = next(iter(sweep.jobs))
    folder.write_state(name, JobState(Status.FAILED, reason="first\nsecond" + "x" * 5000))
    reason = folder.read_state(name).reason
    assert reason.startswith("first second") and len(reason) <= 1000


def test_a_job_of_many_arms_names_the_first_ones(folder, sweep):
    arm = sweep.arms[0]
    arms = tuple(dataclasses.replace(arm, name=f"arm {n}", seed=None) for n in range(20))
    folder.write_sweep(dataclasses.replace(sweep, arms=arms))
    status = commands.show_status(folder)
    assert "arm 0; arm 1; " in status and "arm 7 and 12 more" in status


@pytest.mark.parametrize("line", ['{"step": "abc"}', '{"step": 1e400}', "[" * 60_000, '"text"'])
def test_damaged_metrics_of_running_jobs_have_no_step(folder, sweep, line):
    planned = next(p for p in sweep.jobs.values() if p.kind is Kind.TRAIN)
    folder.write_state(planned.job.name, JobState(Status.RUNNING))
    planned.job.workdir.mkdir(parents=True)
    (planned.job.workdir / "metrics.jsonl").write_text(line + "\n")
    assert "running, no step is logged yet" in commands.show_status(folder)


def test_named_pipes_in_place_of_files_do_not_block(folder, sweep):
    job = next(iter(sweep.jobs.values())).job
    job.log.parent.mkdir()
    os.mkfifo(job.log)
    with pytest.raises(UserError, match=r"\.log cannot be written .* remove it"):
        LocalExecutor(Machine(cores=(0, 1))).submit(job)
    os.mkfifo(folder.path / "sweep.lock")
    assert "The sweep command does not run" in commands.show_status(folder)


def test_jobs_of_another_folder_or_script_are_refused(folder, monkeypatch):
    def make_executor():
        pytest.fail("a job was started")

    with pytest.raises(UserError, match="not a script of this installation"):
        commands.run_sweep(folder, None, make_executor, RunOptions())
    monkeypatch.setattr(commands, "SCRIPTS", dict.fromkeys(Kind, str(FAKE)))
    with pytest.raises(UserError, match="start in .*: change to this folder"):
        commands.run_sweep(folder, None, make_executor, RunOptions())


def test_long_chains_of_jobs_are_described_in_linear_time():
    """Each job depends on the two before it, so that the number of paths is exponential."""
    names = [f"job{number}" for number in range(5000)]
    jobs = {
        name: make_job(Path("/x"), name, Kind.TRAIN, names[max(0, n - 2) : n])
        for n, name in enumerate(names)
    }
    states = dict.fromkeys(names, JobState()) | {"job0": JobState(Status.FAILED)}
    assert status_table.find_blocked(jobs, states) == set(names[1:])
