"""The page of a sweep shows the states of its jobs and the curves of all arms."""

import json
from pathlib import Path

import fake_sweeps
import pytest
from fake_runs import add_records

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
