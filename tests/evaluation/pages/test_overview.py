"""The first table of a comparison: which protocols it shows, and the counts of verdicts."""

import math

import numpy as np
import pytest
from fake_evaluations import write_evaluation

from invnext_jax.evaluation.metrics import formats
from invnext_jax.evaluation.pages import comparison, overview
from invnext_jax.evaluation.pages.overview import Measurement
from invnext_jax.evaluation.pages.paired_differences import Protocol

ROWS = [
    {"input": "mean", "task": "shape", "value": 0.5},
    {"input": "frames", "task": "shape", "value": 0.7},
    {"input": "frames, best on val", "task": "shape", "value": 0.9},
    {"input": "x", "task": "shape", "value": 0.8, "evaluator": "other"},
    {"input": "x", "task": "shape", "value": 1.0, "metric": "recall"},
    {"input": "y", "task": "depth", "value": 0.3, "metric": "abs_rel"},
    {"input": "z", "task": "depth", "value": 0.2, "metric": "abs_rel"},
    {"input": "n", "task": "depth", "value": math.nan, "metric": "abs_rel"},
]

MEAN = Measurement("shape", Protocol("top1", "e", "mean"))


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "val.csv").write_text("path,source,label_shape\n0.mp4,x,0\n1.mp4,x,1\n")
    return str(tmp_path / "val.csv")


@pytest.fixture
def evaluations(tmp_path, manifest):
    base = {"evaluator": "e", "name": "encoder", "metric": "top1", "n": 2, "standard_error": 0.1}
    rows = [{**base, **row} for row in ROWS]
    folders = [
        write_evaluation(tmp_path / "a", manifest, np.ones(2), rows=rows),
        write_evaluation(tmp_path / "b", manifest, np.ones(2), rows=rows[:1]),
    ]
    return comparison.read_evaluations(folders)


def test_each_evaluator_is_shown_with_the_input_that_most_encoders_share(evaluations):
    assert overview.choose_measurements(evaluations)[0] == MEAN
    assert overview.choose_measurements(evaluations[:1]) == [
        Measurement("shape", Protocol("top1", "e", "frames")),
        Measurement("shape", Protocol("top1", "other", "x")),
        Measurement("shape", Protocol("recall", "e", "x")),
        Measurement("depth", Protocol("abs_rel", "e", "z")),
    ]


def test_each_task_has_the_best_value_of_its_first_metric(evaluations):
    assert overview.choose_by_task(evaluations)[0] == MEAN
    assert overview.choose_by_task(evaluations[:1]) == [
        Measurement("shape", Protocol("top1", "other", "x")),
        Measurement("depth", Protocol("abs_rel", "e", "z")),
    ]


def test_references_are_chance_or_the_best_baseline_without_an_encoder(tmp_path, manifest):
    base = {"evaluator": "e", "name": "encoder", "input": "x", "value": 0.5, "n": 2}
    rows = [
        {**base, "metric": "top1", "task": "a", "classes": 8},
        {**base, "metric": "recall_at_5", "task": "b", "chance": 0.05, "classes": 8},
        {**base, "metric": "mean_iou", "task": "c"},
        {**base, "metric": "abs_rel", "task": "d"},
        {**base, "metric": "abs_rel", "task": "d", "name": "constant", "value": 0.3},
        {**base, "metric": "abs_rel", "task": "d", "name": "static", "value": 0.2},
        {**base, "metric": "abs_rel", "task": "d", "name": "token_truth", "value": 0.0},
    ]
    rows = [{**row, "standard_error": None} for row in rows]
    folders = [write_evaluation(tmp_path / n, manifest, [1, 0], rows=rows) for n in "ab"]
    evaluations = comparison.read_evaluations(folders)
    protocols = [m.protocol for m in overview.choose_measurements(evaluations)]
    found = {protocol: comparison.make_table(evaluations, protocol) for protocol in protocols}
    table = overview.make_overview(evaluations, found)
    references = [row["reference"] for row in table["rows"]]
    assert references == ["12.5", "5.0", "", "0.200 (static)"]


def test_baselines_are_those_of_the_compared_videos(tmp_path, manifest):
    (tmp_path / "other.csv").write_text("path,source,label_shape\n5.mp4,x,0\n6.mp4,x,1\n")
    base = {"evaluator": "e", "metric": "abs_rel", "task": "d", "input": "x", "n": 2}
    folders = []
    for name, value, constant in (("a", 0.2, 0.5), ("b", 0.25, 0.5), ("c", 0.04, 0.05)):
        rows = [
            {**base, "name": row, "value": number, "standard_error": None}
            for row, number in (("encoder", value), ("constant", constant))
        ]
        videos = str(tmp_path / "other.csv") if name == "c" else manifest
        folders.append(write_evaluation(tmp_path / name, videos, [1, 0], rows=rows))
    evaluations = comparison.read_evaluations(folders)
    (measurement,) = overview.choose_measurements(evaluations)
    protocol = measurement.protocol
    found = {protocol: comparison.make_table(evaluations, protocol)}
    (row,) = overview.make_overview(evaluations, found)["rows"]
    assert row["reference"] == "0.500 (constant)"


def test_rows_have_a_cell_for_each_encoder_and_counts_of_verdicts(tmp_path, manifest):
    scores = np.arange(60) % 2
    folders = [
        write_evaluation(tmp_path / name, manifest, score_b)
        for name, score_b in (("a", scores), ("b", np.ones(60)), ("c", scores))
    ]
    evaluations = comparison.read_evaluations(folders)
    protocol = Protocol("top1", "linear_probe", "mean")
    found = {protocol: comparison.make_table(evaluations, protocol)}
    table = overview.make_overview(evaluations, found)
    (row,) = table["rows"]
    assert (row["evaluator"], row["task"], row["metric"]) == ("linear probe", "shape", "top-1, %")
    assert [cell["text"] for cell in row["cells"]] == ["50.0", "100.0", "50.0"]
    assert [cell["mark"] for cell in row["cells"]] == ["", "best", ""]
    counts = {count["verdict"]: count["numbers"] for count in table["counts"]}
    assert counts == {"better": [None, 1, 0], "worse": [None, 0, 0], "unclear": [None, 0, 1]}
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert "better than a" in page


def test_encoders_without_a_value_or_with_other_videos_are_named(tmp_path, manifest):
    """Two of four encoders have the same input and the same videos; the first one differs."""
    (tmp_path / "other.csv").write_text("path,source,label_shape\n5.mp4,x,0\n6.mp4,x,1\n")
    base = {"evaluator": "e", "name": "encoder", "metric": "top1", "task": "shape", "n": 2}
    inputs = {"a": ("mean",), "b": ("mean",), "c": ("mean", "class"), "d": ("class",)}
    folders = [
        write_evaluation(
            tmp_path / name,
            str(tmp_path / "other.csv") if name == "a" else manifest,
            [1, 0],
            rows=[
                {**base, "input": part, "value": value, "standard_error": None} for part in found
            ],
        )
        for (name, found), value in zip(inputs.items(), (0.9, 0.85, 0.7, 0.8), strict=True)
    ]
    evaluations = comparison.read_evaluations(folders)
    measurements = overview.choose_measurements(evaluations)
    # Both inputs have two encoders with the same videos; the better one of "mean" is better.
    assert measurements == [Measurement("shape", Protocol("top1", "e", "mean"))]
    assert overview.find_left_out(evaluations, measurements) == [
        "a and b have different held-out videos, so their values are not compared (e, shape).",
        "d has no value for 'mean', only for 'class' (e, shape).",
    ]
    table = comparison.make_table(evaluations, measurements[0].protocol)
    marks = [row["cells"]["shape"]["mark"] for row in table["rows"] if row["is_encoder"]]
    assert marks == ["apart", "best", "unknown"]  # the rows have no scores of videos
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert "d has no value for" in page and 'class="figure apart"' in page


def test_the_gain_of_prediction_has_a_row_and_lower_losses_are_better(tmp_path, manifest):
    base = {"evaluator": "temporal_context", "name": "encoder", "task": "latents", "n": 2}
    folders = []
    for name, losses in (("a", (0.5, 0.4)), ("b", (0.3, 0.1))):
        values = {"own frame": losses[0], "all frames": losses[1], "gain": losses[0] - losses[1]}
        rows = [
            {
                **{**base, "input": what, "value": value, "standard_error": 0.01},
                "metric": "prediction_gain" if what == "gain" else "prediction_loss",
            }
            for what, value in values.items()
        ]
        folders.append(write_evaluation(tmp_path / name, manifest, [1, 0], rows=rows))
    evaluations = comparison.read_evaluations(folders)
    measurements = overview.choose_measurements(evaluations)
    assert [(m.protocol.metric, m.protocol.input) for m in measurements] == [
        ("prediction_loss", "all frames"),
        ("prediction_gain", "gain"),
    ]
    for measurement in measurements:  # b has the lower loss and the higher gain
        table = comparison.make_table(evaluations, measurement.protocol)
        cells = [row["cells"]["latents"] for row in table["rows"]]
        assert [cell["mark"] for cell in cells] == ["unknown", "best"]  # without scores of videos


@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_class_mean_recall_is_in_percent_for_each_k(k):
    form = formats.find_format(f"class_mean_recall@{k}")
    assert (form.title, form.write(0.123), form.is_share) == (
        *(f"class-mean recall@{k}, %", "12.3"),
        True,
    )
