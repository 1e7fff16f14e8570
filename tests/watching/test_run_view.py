"""The sections of the page of a run follow its files."""

import json
import os
import re

import fake_runs
import pytest

from invnext_jax.monitoring import metrics_file
from invnext_jax.watching import newest_strips
from invnext_jax.watching.run_status import RunStatus
from invnext_jax.watching.run_view import RunView, describe_hosts, describe_record


@pytest.fixture
def view(tmp_path):
    view = RunView(tmp_path, clips=0)
    yield view
    view.close()


def test_a_run_appears_when_it_starts(tmp_path, view):
    assert "Not started" in view.render()["status"]
    fake_runs.write_run(tmp_path)
    sections = view.render()
    assert "<svg" in sections["charts"] and "modernbert" in sections["facts"]
    assert "20 clips/s" in sections["status"]


def test_unchanged_files_are_not_drawn_again(tmp_path, view):
    fake_runs.write_run(tmp_path)
    assert "charts" in view.render()
    assert "charts" not in view.render()
    fake_runs.add_records(tmp_path, (3,))
    assert "charts" in view.render()


def test_step_and_checkpoint_are_of_one_moment(tmp_path, view, monkeypatch):
    fake_runs.write_run(tmp_path)
    read_numbers = metrics_file.read_numbers

    def read_and_save(workdir):
        """A checkpoint and a record that are written while the page is rendered."""
        found = read_numbers(workdir)
        if not (tmp_path / "checkpoints").exists():
            fake_runs.write_checkpoint(tmp_path, 30)
            fake_runs.add_records(tmp_path, (30,))
        return found

    monkeypatch.setattr(metrics_file, "read_numbers", read_and_save)
    first, second = view.render()["status"], view.render()["status"]
    assert "after step 2 of 40" in first and "step 30" not in first
    assert "after step 30 of 40" in second and "<dd>step 30</dd>" in second


def test_an_incomplete_last_line_is_ignored(tmp_path, view):
    fake_runs.write_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    sections = view.render()
    assert "after step 2 of 40" in sections["status"] and "<svg" in sections["charts"]


def test_a_damaged_line_is_shown_and_the_charts_stay(tmp_path, view):
    fake_runs.write_run(tmp_path)
    view.render()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("<script>alert(1)</script>\n")
    sections = view.render()
    assert "line 3 of" in sections["status"] and "<script" not in sections["status"]
    assert "<svg" in sections["charts"]


def test_a_resumed_run_loses_the_steps_that_it_repeats(tmp_path, view):
    fake_runs.write_run(tmp_path, steps=(1, 30))
    assert "after step 30" in view.render()["status"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part").write_text(lines[0])
    os.replace(tmp_path / "part", tmp_path / "metrics.jsonl")
    assert "after step 1 " in view.render()["status"]


def test_text_of_the_files_is_escaped(tmp_path, view):
    fake_runs.write_run(tmp_path, variant="<img src=x onerror=alert(1)>")
    page = "".join(view.render().values())
    assert "&lt;img src=x" in page and "<img src=x" not in page


@pytest.mark.parametrize("value", ['"text"', "[1]", "1e999", "NaN", "true", "1" + "0" * 400])
def test_a_value_that_is_not_a_number_is_left_out(tmp_path, view, value):
    fake_runs.write_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": 3, "loss": {value}, "skipped": {value}, "mfu": {value}}}\n')
    assert "<svg" in view.render()["charts"]


@pytest.mark.parametrize("name", ["variant", "predictor/kind", "mask/kind"])
@pytest.mark.parametrize("text", ["x" * 501, "a\nb"])
def test_texts_that_a_page_shows_are_short_lines(tmp_path, view, name, text):
    fake_runs.write_run(tmp_path)
    path = tmp_path / "config.json"
    part = config = json.loads(path.read_text())
    *sections, field = name.split("/")
    for section in sections:
        part = part[section]
    part[field] = text
    path.write_text(json.dumps(config))
    status = view.render()["status"]
    assert "is not a line of 0 to 500 printable characters: use another run" in status


@pytest.mark.parametrize("forged", [{"git": "x" * 501}, {"versions": {"jax": "x" * 501}}])
def test_long_versions_of_a_run_are_not_shown(tmp_path, view, forged):
    fake_runs.write_run(tmp_path)
    fake_runs.write_checkpoint(tmp_path, 2)
    path = tmp_path / "checkpoints/2/meta/metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | forged))
    assert "xxx" not in view.render()["facts"]


def test_facts_of_a_run_with_a_checkpoint_have_its_versions(tmp_path, view):
    fake_runs.write_run(tmp_path)
    assert "no git" not in view.render()["facts"]
    fake_runs.write_checkpoint(tmp_path, 2)
    assert "jax 1.2.3" in view.render()["facts"]


@pytest.mark.parametrize(("speed", "left"), [(5e-324, None), (-1.0, None), (2.0, "0:40")])
def test_the_time_left_is_a_possible_one(speed, left):
    config = {"total_steps": 11, "batch_size": 8}
    record = {"step": 1, "clips_per_second": speed}
    assert describe_record([record], config, RunStatus("running")).get("time left") == left


def test_hosts_are_compared():
    names = {"min": 0.1, "mean": 0.2, "max": 0.5, "worst_host": 3}
    record = {f"hosts/data_wait/{name}": value for name, value in names.items()}
    found = describe_hosts([{"step": 1}, {"step": 2, **record}, {"step": 3}])
    assert found == [{"name": "data wait", "min": "0.1", "mean": "0.2", "max": "0.5", "worst": "3"}]
    assert describe_hosts([{"step": 1}]) == []


class FakeProcess:
    """Fake of `StripsProcess` that ends when the test says so."""

    made = []

    def __init__(self, arguments):
        self.arguments, self.running, self.failure = arguments, True, ""
        self.made.append(self)

    def is_running(self):
        return self.running

    def describe_failure(self):
        return self.failure

    def end(self, content="", failure=""):
        self.running, self.failure = False, failure
        with open(re.sub("^--out=", "", self.arguments[-1]), "w") as file:
            file.write(content)

    def close(self):
        self.running = False


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(FakeProcess, "made", [])
    monkeypatch.setattr(newest_strips, "StripsProcess", FakeProcess)
    return FakeProcess.made


def test_clips_are_drawn_once_for_each_checkpoint(tmp_path, processes):
    fake_runs.write_run(tmp_path)
    view = RunView(tmp_path, clips=1)
    assert view.render()["clips"] == "" and not processes
    fake_runs.write_checkpoint(tmp_path, 2)
    assert "are being drawn" in view.render()["clips"]
    view.render()
    assert len(processes) == 1 and processes[0].arguments[:2] == [str(tmp_path), "--clips=1"]
    strip = '{"title": "Input", "caption": "c", "uri": "data:image/png;base64,AA"}'
    clips = f'[{{"name": "Clip 0", "strips": [{strip}]}}]'
    processes[0].end(f'{{"step": 2, "manifest": "m.csv", "notes": [], "clips": {clips}}}')
    section = view.render()["clips"]
    assert "Checkpoint of step 2" in section and "data:image/png;base64,AA" in section
    view.render()
    assert len(processes) == 1
    fake_runs.write_checkpoint(tmp_path, 4)
    section = view.render()["clips"]
    assert len(processes) == 2 and "Checkpoint of step 2" in section and "being drawn" in section
    view.close()
    assert not processes[1].running


def test_a_failure_to_draw_is_shown_and_tried_again(tmp_path, processes, monkeypatch):
    fake_runs.write_run(tmp_path)
    fake_runs.write_checkpoint(tmp_path, 2)
    view = RunView(tmp_path, clips=1)
    view.render()
    processes[0].end(failure="videos are <missing>")
    assert "videos are &lt;missing&gt;" in view.render()["clips"]
    assert len(processes) == 1
    monkeypatch.setattr(newest_strips, "_RETRY_SECONDS", 0.0)
    view._strips._retry = 0.0
    view.render()
    assert len(processes) == 2
    processes[1].end("{")
    assert "is damaged" in view.render()["clips"]
    view.close()
