"""The learning curves of a sweep are limited, because its folder may come from somebody else."""

import json
from pathlib import Path

import pytest
from fake_sweeps import make_job

from invnext_jax.evaluation.pages import charts
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedArm
from invnext_jax.sweeps.report import curves, sweep_page
from invnext_jax.sweeps.report.results import Results
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import JobState, SweepFolder


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep of one training with many metrics, whose charts are not drawn."""
    monkeypatch.setattr(charts, "draw_lines", lambda *_: "<svg></svg>")
    planned = make_job(tmp_path, "a", Kind.TRAIN)
    record = {"step": 1, "loss": 1.0, **{f"loss/align_{n}": 1.0 for n in range(1000)}}
    path = Path(planned.job.workdir) / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record) + "\n")
    arms = (PlannedArm("a", "g", 0, False, {}, {"s1": "a"}),)
    return ExpandedSweep("x", arms, {}, {"a": planned})


def test_a_kind_of_metric_has_a_limited_number_of_charts(sweep):
    loss, *found = curves.make_curves(sweep, "g")
    assert "Only" not in loss["caption"] and len(found) == charts.MAX_LINES
    assert all("Only 12 of 1000 metrics are shown" in chart["caption"] for chart in found)


def test_a_page_has_a_limited_number_of_charts(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(curves, "MAX_CHARTS", 5)
    results = Results(sweep, {}, {}, {}, states={"a": JobState()})
    tables = [sweep_page.SweepTable("g", (), ())] * 3
    found = sweep_page.describe_sweep(SweepFolder(tmp_path), results, tables)
    assert [len(table["curves"]) for table in found["tables"]] == [5, 0, 0]
    assert found["notes"] == ["Only the first 5 learning curves are shown."]
