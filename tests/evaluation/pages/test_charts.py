"""Charts show the logged metrics."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from invnext_jax.evaluation.pages import charts


def test_each_spec_with_values_has_a_chart():
    records = [
        {"step": 1, "loss": 2.0, "loss/pixels": 1.0, "learning_rate": 0.0, "conditioning_gap": 0.0},
        {"step": 2, "loss": 1.0, "loss/pixels": None, "learning_rate": 1e-3},
    ]
    found = charts.make_charts(records, "a")
    titles = [chart["title"] for chart in found]
    assert titles == ["Loss", "Pixels", "Conditioning gap", "Learning rate"]
    assert found[0]["legend"] == [("loss", charts.COLORS[0], "1")]
    assert found[1]["legend"][0][2] == "1, then not finite"
    assert charts.make_charts([], "a") == []


def test_svg_scales_with_the_page_and_has_no_external_url():
    svg = charts.make_charts([{"step": 1, "loss": 2.0}, {"step": 2, "loss": -1.0}], "a")[0]["svg"]
    head = svg[: svg.index(">")]
    assert "viewBox" in head
    assert "width" not in head
    assert set(re.findall(r"https?://[^\"/]+", svg)) <= {"http://www.w3.org"}


def test_zero_on_a_log_scale_is_left_out():
    records = [{"step": i, "encoder_grad/pixels": v} for i, v in enumerate((0.0, 1e-3, 1e-2))]
    assert "<svg" in charts.make_charts(records, "a")[0]["svg"]


def test_chart_without_positive_values_on_a_log_scale_is_drawn():
    before = charts.make_charts([{"step": 1, "grad_norm": 0.0}], "a")[0]["svg"]
    after = charts.make_charts([{"step": 1, "grad_norm": math.nan}], "a")[0]["svg"]
    assert before.count("<use") > after.count("<use")  # the point at 0 is visible


@pytest.mark.parametrize("step", [0, 1, 500])
def test_ticks_of_a_single_step_are_whole_steps(step, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k)
    )
    charts.make_charts([{"step": step, "loss": 2.0}], "a")
    low, high = figures[0].axes[0].get_xlim()
    ticks = [tick for tick in figures[0].axes[0].get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks)
    assert low <= step <= high


def test_values_keep_three_digits():
    assert [charts.format_value(x) for x in (0.0, 1.23456, 4.2e-5)] == ["0", "1.23", "4.2e-05"]


def test_accuracies_and_the_rank_of_an_evaluation_have_different_charts():
    records = [{"step": n, "eval/knn_shape": 0.5, "eval/feature_rank": 9.0} for n in (1, 2)]
    found = charts.make_charts(records, "a")
    legends = {chart["title"]: [name for name, *_ in chart["legend"]] for chart in found}
    assert legends == {
        "Nearest neighbors during training": ["knn_shape"],
        "Effective rank": ["feature_rank"],
    }


def test_lines_are_interrupted_where_other_videos_are_evaluated(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "_responsive", lambda svg: svg)
    monkeypatch.setattr(charts.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    scores = {2: 0.5, 4: 0.6, 6: 0.1, 8: 0.2}
    records = [{"step": n, "eval/knn_shape": x, "loss": x} for n, x in scores.items()]
    records[2]["eval/since_step"] = records[3]["eval/since_step"] = 4.0
    loss, accuracy = charts.make_charts(records, "a")
    assert "dotted line" in accuracy["caption"] and "dotted line" not in loss["caption"]
    (line,), (curve, mark) = (figure.axes[0].lines for figure in drawn)
    np.testing.assert_array_equal(line.get_xydata(), list(scores.items()))
    expected = [(2, 0.5), (4, 0.6), (4, np.nan), (6, 0.1), (8, 0.2)]
    np.testing.assert_array_equal(curve.get_xydata(), expected)
    assert set(mark.get_xdata()) == {4}


def test_the_number_of_lines_of_a_chart_is_limited():
    record = {"step": 1, **{f"loss/align_{i:02}": 1.0 for i in range(30)}}
    [chart] = charts.make_charts([record], "a")
    assert len(chart["legend"]) == charts.MAX_LINES == 12
    assert chart["legend"][-1][0] == "align_11"
    assert chart["caption"].endswith("Only 12 of 30 metrics are shown.")


def test_metrics_that_no_chart_shows_cost_no_pass_over_the_records():
    class Record(dict):
        reads = 0

        def get(self, *arguments):
            Record.reads += 1
            return super().get(*arguments)

    names = {f"x{i}": 1.0 for i in range(1000)}
    records = [Record(step=0, loss=1.0, **names)]
    records += [Record(step=step, loss=1.0) for step in range(1, 1000)]
    [chart] = charts.make_charts(records, "a")
    assert chart["title"] == "Loss"
    assert Record.reads <= 2 * len(records)


def test_a_matplotlibrc_in_the_current_folder_has_no_effect(tmp_path):
    log, latex = tmp_path / "latex.log", tmp_path / "bin" / "latex"
    latex.parent.mkdir()
    latex.write_text(f"#!/bin/sh\necho started >> {log}\nexit 1\n")
    latex.chmod(0o755)
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    settings = "text.usetex: True\nlines.linestyle: --\naxes.facecolor: red\nfont.family: serif\n"
    (hostile / "matplotlibrc").write_text(settings)
    path = os.pathsep.join([str(latex.parent), os.environ["PATH"]])
    root = str(Path(charts.__file__).parents[3])
    code = (
        "import os; from invnext_jax.evaluation.pages import charts; "
        "print(os.getcwd()); print(charts.draw_lines([[(1, 2.0), (2, 1.0)]], False, 'a'))"
    )
    environment = {**os.environ, "PATH": path, "PYTHONPATH": root}
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(
        command, cwd=hostile, env=environment, capture_output=True, text=True, check=True
    )
    folder, _, svg = shown.stdout.partition("\n")
    assert Path(folder) == hostile  # the folder is restored
    assert svg.strip() == charts.draw_lines([[(1, 2.0), (2, 1.0)]], False, "a").strip()
    assert not log.exists()


def test_settings_of_the_user_have_no_effect():
    expected = charts.draw_lines([[(1, 2.0), (2, 1.0)]], False, "a")
    with charts.matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red"}):
        assert charts.draw_lines([[(1, 2.0), (2, 1.0)]], False, "a") == expected
        assert charts.matplotlib.rcParams["text.usetex"]
