"""The page of a sweep shows the states of its jobs and the curves of all arms."""

import json
from pathlib import Path

import fake_sweeps
import pytest
from fake_runs import add_records

from invnext_jax import file_lock
from invnext_jax.sweeps import status_table
from invnext_jax.sweeps.report import curves
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder
from invnext_jax.watching import watch
from invnext_jax.watching.sweep_view import SweepView


@pytest.fixture
def sweep(tmp_path):
    sweep = fake_sweeps.make_sweep(tmp_path / "sweep", seeds=(0,))
    for planned in sweep.jobs.values():
        planned.job.workdir.mkdir(parents=True)
    return sweep


def test_a_sweep_that_has_not_started(sweep, tmp_path):
    sections = SweepView(SweepFolder(tmp_path / "sweep")).render()
    assert "Not started" in sections["status"] and "5 jobs (5 waiting)" in sections["status"]
    assert sections["jobs"].count("<tr>") == 6 and "s2-a0" in sections["jobs"]
    assert "<svg" not in sections["tables"]
    assert "No job with values for this table has finished yet" in sections["tables"]


def test_all_arms_are_lines_of_one_chart(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    view = SweepView(folder)
    view.render()
    for name in ("s2-a0", "s2-b0"):
        folder.write_state(name, JobState(Status.RUNNING))
        add_records(sweep.jobs[name].job.workdir, (1, 2))
    sections = view.render()
    assert (
        "Running" in sections["status"] and "running, last logged step 2 of 6" in sections["jobs"]
    )
    assert sections["tables"].count("<svg") == 1
    legend = sections["tables"].partition('class="legend lines">')[2].partition("</div>")[0]
    assert legend.count("<i ") == 2
    assert "tables" not in view.render()
    add_records(sweep.jobs["s2-a0"].job.workdir, (3,))
    assert "tables" in view.render()


def test_a_failed_job_is_shown_with_its_log(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.write_state("s2-a0", JobState(Status.FAILED, failures=2, reason="exit code <1>"))
    log = sweep.jobs["s2-a0"].job.log
    log.parent.mkdir(parents=True)
    log.write_text("<b>out of memory</b>\n")
    sections = SweepView(folder).render()
    assert "Failed" in sections["status"] and "exit code &lt;1&gt;" in sections["jobs"]
    assert "&lt;b&gt;out of memory" in sections["tables"]


def test_a_finished_sweep_has_its_table(tmp_path):
    folder = tmp_path / "sweep"
    sweep = fake_sweeps.make_sweep(folder, seeds=(0,))
    fake_sweeps.run(folder, sweep)
    server = watch.open_server(folder, port=0, clips=0)
    try:
        page = server.render_page()
    finally:
        server.server_close()
        server.page.close()
    assert "<h1>sweep</h1>" in page and "Finished" in page
    assert "Differences from a" in page


def test_a_folder_can_become_a_sweep(tmp_path):
    view = watch.FolderView(tmp_path / "sweep", clips=0)
    assert "does not exist yet" in view.render()["status"]
    fake_sweeps.make_sweep(tmp_path / "sweep", seeds=(0,))
    assert "5 waiting" in view.render()["status"]
    view.close()


def test_a_damaged_description_is_shown(sweep, tmp_path):
    folder = tmp_path / "sweep"
    server = watch.open_server(folder, port=0, clips=0)
    try:
        description = json.loads(Path(folder / "sweep.json").read_text())
        del description["jobs"]
        Path(folder / "sweep.json").write_text(json.dumps(description))
        server.page._update()
        assert "sweep.json is damaged" in server.page.sections["problem"]
        assert "s2-a0" in server.page.sections["jobs"]
    finally:
        server.server_close()
        server.page.close()


def test_a_sweep_whose_processes_were_killed_does_not_run(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    view = SweepView(folder)
    for name, status in (("s1-0", Status.FINISHED), ("s2-a0", Status.RUNNING)):
        folder.write_state(name, JobState(status, handle={"system": "local"}))
    add_records(sweep.jobs["s2-a0"].job.workdir, (1, 2))
    lock = sweep.jobs["s2-a0"].job.log.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with file_lock.open_locked(lock):  # as the process of the job
        assert "Running" in view.render()["status"]
        assert "running, last logged step 2 of 6" in view.render()["jobs"]
        assert "1 running" in status_table.format_status(folder, sweep)
    sections = view.render()
    assert "Stopped" in sections["status"] and "Running" not in sections["status"]
    assert "stopped, continues from step 0 of 6" in sections["jobs"]
    assert "1 stopped, 1 finished" in status_table.format_status(folder, sweep)
    assert folder.read_state("s2-a0").status is Status.RUNNING  # it is only shown differently


def test_a_job_that_ended_after_its_sweep_command_is_finished(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.write_state("s2-a0", JobState(Status.RUNNING, handle={"system": "local"}))
    (sweep.jobs["s2-a0"].job.workdir / "checkpoints/6").mkdir(parents=True)
    assert "1 finished" in status_table.format_status(folder, sweep)


@pytest.mark.parametrize("system, host", [("slurm", ""), ("local", "node7")])
def test_jobs_of_other_hosts_count_as_running(sweep, tmp_path, system, host):
    folder = SweepFolder(tmp_path / "sweep")
    folder.write_state("s2-a0", JobState(Status.RUNNING, handle={"system": system}))
    if host:
        (folder.path / "sweep.lock").write_text(json.dumps({"pid": 1, "host": host}))
    assert "Running" in SweepView(folder).render()["status"]


def test_blocked_jobs_are_not_counted_as_waiting(sweep, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.write_state("s2-a0", JobState(Status.FAILED, reason="exit code 1"))
    assert "(3 waiting, 1 failed, 1 blocked)" in SweepView(folder).render()["status"]
    text = status_table.format_status(folder, sweep)
    assert "5 jobs: 3 waiting, 1 failed, 1 blocked." in text
    assert "b (seed 0)" in text


def test_the_legend_marks_arms_that_are_not_finite(sweep):
    for name, losses in (("s2-a0", (2.0, 1.5)), ("s2-b0", (3.0, None))):
        for step, loss in enumerate(losses, 1):
            add_records(sweep.jobs[name].job.workdir, (step,), loss=loss)
    (loss,) = (c for c in curves.make_curves(sweep, "") if c["title"] == "s2, Loss")
    assert [(entry[0], entry[-1]) for entry in loss["legend"]] == [
        *(("a", "1.5"), ("b", "3, then not finite"))
    ]
