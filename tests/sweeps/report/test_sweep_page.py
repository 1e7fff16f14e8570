"""The table of a sweep shows values, and the states of jobs that have none."""

import csv
import dataclasses
import itertools
import json

import pytest
from fake_sweeps import make_sweep, run

from invnext_jax.errors import UserError
from invnext_jax.sweeps import status_table
from invnext_jax.sweeps.arms import Column
from invnext_jax.sweeps.report import results as results_lib
from invnext_jax.sweeps.report import sweep_page
from invnext_jax.sweeps.report.results import collect_results
from invnext_jax.sweeps.report.sweep_page import write_tables
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished sweep of two arms and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    run(folder, make_sweep(folder))
    return SweepFolder(folder)


@pytest.fixture
def restore_states(finished):
    """Restores the states of the jobs after a test."""
    sweep = finished.read_sweep()
    states = {name: finished.read_state(name) for name in sweep.jobs}
    yield
    for name, state in states.items():
        finished.write_state(name, state)


def test_values_are_those_of_the_evaluations(finished, tmp_path):
    write_tables(finished, tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    # The fake accuracy is 1 / (1 + loss), with the sum of the losses of both stages.
    losses = {"a": (0.1, 1.1), "b": (1.1, 2.1)}
    assert [row["arm"] for row in rows] == ["a", "b"]
    for row in rows:
        expected = [
            f"{seed}:{100 / (1 + loss):.10g}" for seed, loss in enumerate(losses[row["arm"]])
        ]
        assert row["values"] == " ".join(expected)
    assert rows[1]["pairs"] == "2" and rows[1]["pairs_of"] == "seeds"


def test_page_has_the_table_and_the_curves(finished, tmp_path):
    for ending in ("md", "csv", "html", "md", "csv", "html"):  # replaces earlier tables
        text = write_tables(finished, tmp_path / f"table.{ending}")
    page = (tmp_path / "table.html").read_text()
    assert "probe: linear_probe, mean, shape, top-1, %" in page and "s1, Loss" in page
    assert "Differences from a" in page and page.count("<svg") >= 2
    assert "| a (baseline) |" in text
    assert "http" not in page.replace("http://www.w3.org", "")


def test_cells_without_a_value_show_the_state(finished, tmp_path, restore_states):
    finished.write_state("eval-a0", JobState(Status.RUNNING))
    finished.write_state("s2-b0", JobState(Status.FAILED, reason="non-finite"))
    finished.write_state("eval-b0", JobState())
    (finished.path / "logs/s2-b0.log").write_text("<the last line>\n")
    text = write_tables(finished, tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    assert "(n 1) [running]" in text and "(n 1) [blocked by a failed job]" in text
    assert "Failed jobs" in page and "&lt;the last line&gt;" in page


def collect(folder, sweep):
    return collect_results(sweep, status_table.read_current_states(folder, sweep))


@pytest.mark.parametrize(
    ("source", "file"), [("s2-a0", "metrics.jsonl"), ("eval-a0", "results.json")]
)
def test_links_to_the_files_of_another_job_are_refused(source, file, finished):
    sweep = finished.read_sweep()
    path = finished.path / "runs" / source.replace("a0", "b1") / file
    before = path.read_bytes()
    path.unlink()
    path.symlink_to(finished.path / "runs" / source / file)
    try:
        with pytest.raises(UserError, match=f"{file} and .*/{file} are the same file: remove the"):
            collect(finished, sweep)
    finally:
        path.unlink()
        path.write_bytes(before)


def with_columns(folder, **columns):
    return dataclasses.replace(folder.read_sweep(), columns=columns)


def test_a_training_can_be_a_column(finished):
    values = collect(finished, with_columns(finished, loss=Column("s2", "loss"))).values
    assert values["", "b", "loss"][1].value == pytest.approx(2.1)


def test_a_training_column_is_the_last_logged_value_of_its_metric(finished):
    path = finished.path / "runs/s2-b0/metrics.jsonl"
    before = path.read_text()
    records = [
        {"step": 2, "loss": 3.0, "rank": 7.0},
        {"step": 4, "rank": 8.5},
        {"step": 5, "x": None},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + before)
    columns = {name: Column("s2", name) for name in ("loss", "rank", "x")}
    try:
        values = collect(finished, with_columns(finished, **columns)).values
    finally:
        path.write_text(before)
    assert values["", "b", "loss"][0].value == json.loads(before)["loss"]
    assert values["", "b", "rank"][0].value == 8.5
    assert values["", "b", "rank"][1].missing == "missing"  # the other seed has no such metric
    assert values["", "b", "x"][0].missing == "non-finite"


def test_a_column_that_no_job_has_is_reported(finished, tmp_path):
    columns = {
        "a": Column("s2", "los"),
        "b": Column("probe", task="shap"),
        "c": Column("s2", "loss"),
    }
    sweep = with_columns(finished, **columns)
    first, second = collect(finished, sweep).notes
    assert "step 's2' has a value for the column 'a' (metric='los'): correct the column" in first
    assert "step 'probe' has a value for the column 'b' (task='shap')" in second
    before = finished.read_sweep()
    finished.write_sweep(sweep)
    try:
        text = write_tables(finished, tmp_path / "table.html")
    finally:
        finished.write_sweep(before)
    assert first in text and "metric=&#39;los&#39;" in (tmp_path / "table.html").read_text()


def test_a_published_value_of_no_column_is_reported(finished):
    sweep = finished.read_sweep()
    arms = [dataclasses.replace(arm, reference={"K400": 1.0}) for arm in sweep.arms]
    sweep = dataclasses.replace(sweep, arms=tuple(arms))
    (note,) = collect(finished, sweep).notes
    assert "The table has no column 'K400', for which arms have a published value" in note


def test_arms_with_equal_values_are_named(finished):
    """For example, two mask ratios that are rounded to the same number of patches."""
    columns = {"a": Column("s2", "loss"), "b": Column("probe", task="shape")}
    sweep = with_columns(finished, **columns)
    assert collect(finished, sweep).notes == ()
    runs, before = finished.path / "runs", {}
    for step, file in (("s2", "metrics.jsonl"), ("probe", "results.json")):
        for seed in (0, 1):
            jobs = [arm.jobs[step] for arm in sweep.arms if arm.seed == seed]
            source, path = (runs / name / file for name in jobs)
            before[path] = path.read_text()
            path.write_text(source.read_text())
    try:
        (note,) = collect(finished, sweep).notes
    finally:
        for path, content in before.items():
            path.write_text(content)
    assert note.startswith("'a' and 'b' have the same values in all columns.")


def test_a_table_that_is_too_large_is_a_user_error(finished):
    sweep = finished.read_sweep()
    columns = {str(n): Column("s2", "loss") for n in range(1000)}
    sweep = dataclasses.replace(sweep, arms=sweep.arms * 100, columns=columns)
    with pytest.raises(UserError, match="400 arms and 1000 columns, more than 65536 values"):
        collect(finished, sweep)


def test_damaged_metrics_are_missing_values(finished, tmp_path):
    path = finished.path / "runs/s2-b0/metrics.jsonl"
    before = path.read_text()
    try:
        for loss in ('"abc"', "1e999", "1" + "0" * 400):
            path.write_text(f'{{"step": 1, "loss": {loss}}}\n')
            values = collect(finished, with_columns(finished, x=Column("s2", "loss"))).values
            assert values["", "b", "x"][0].missing == "missing"
    finally:
        path.write_text(before)


def test_notes_of_evaluations_are_shown_with_their_arms(finished, tmp_path):
    notes = {"eval-a0": ["8 copies.", "4 frames."], "eval-a1": ["4 frames."]}
    notes |= {name: ["4 frames."] for name in ("eval-b0", "eval-b1")}
    before = {}
    for name, found in notes.items():
        path = finished.path / "runs" / name / "results.json"
        before[path] = path.read_text()
        path.write_text(json.dumps({**json.loads(before[path]), "notes": found}))
    try:
        text = write_tables(finished, tmp_path / "table.html")
    finally:
        for path, content in before.items():
            path.write_text(content)
    for written in (text, (tmp_path / "table.html").read_text()):
        assert "a (seed 0): 8 copies." in written
        assert written.count("4 frames.") == 1 and "all evaluations: 4 frames." in written


def test_a_report_that_cannot_be_written_is_a_user_error(finished, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file/table.md"
    with pytest.raises(UserError, match=r"--report=.*table.md cannot be written \(.*: choose"):
        write_tables(finished, out)


@pytest.mark.parametrize(
    ("paths", "names"),
    [(("x/a", "y/b"), ("a", "b")), (("x/a", "y/a"), ("/tmp/x/a", "/tmp/y/a"))],
)
def test_each_of_several_sweeps_has_its_page_and_name(paths, names, monkeypatch):
    monkeypatch.setattr(sweep_page, "write_tables", lambda folder, page: f"{folder.path} {page}")
    folders = [SweepFolder(f"/tmp/{path}") for path in paths]
    texts, links = sweep_page.write_pages(folders, "out/r.html")
    assert texts == [f"/tmp/{path} out/r.sweep{i}.html" for i, path in enumerate(paths, 1)]
    assert links == dict(zip(names, ("r.sweep1.html", "r.sweep2.html"), strict=True))


def test_a_column_that_is_not_unique_is_a_user_error(finished):
    path = finished.path / "runs/eval-a0/results.json"
    before = path.read_text()
    results = json.loads(before)
    results["rows"].append({**results["rows"][0], "evaluator": "knn"})
    path.write_text(json.dumps(results))
    try:
        with pytest.raises(UserError, match="the column 'x' of the sweep selects 2 rows.*--config"):
            collect(finished, with_columns(finished, x=Column("probe")))
        column = Column("probe", evaluator="knn")
        assert collect(finished, with_columns(finished, x=column)).values
    finally:
        path.write_text(before)


def test_columns_select_rows_as_if_each_was_compared_with_all(tmp_path):
    """All combinations of fields, and rows with empty fields."""
    rows = []
    for number, values in enumerate(itertools.product(("", "a"), ("x", "y"), ("p",), ("", "b"))):
        fields = dict(zip(results_lib._FIELDS, values, strict=True))
        rows.append({"name": ("encoder", "other")[number % 3 == 2], "value": number, **fields})
    evaluation = results_lib.Evaluation("eval-a0", tmp_path, {"rows": rows})
    options = itertools.product(("", "a"), ("", "x", "z"), ("", "p"), ("", "b"))
    columns = {str(found): Column("probe", *found) for found in options}
    find = results_lib._index_rows(columns, {"eval-a0": evaluation, "s2-a0": {}, "b": None})
    for column in columns.values():
        expected = [
            row
            for row in rows
            if row["name"] == "encoder"
            and all(getattr(column, name) in ("", row[name]) for name in results_lib._FIELDS)
        ]
        assert list(find(column, evaluation)) == expected


def test_unknown_formats_are_user_errors(finished):
    with pytest.raises(UserError, match="--report=table.pdf must end in one of .html, .md, .csv"):
        write_tables(finished, "table.pdf")
