"""Means over seeds and paired differences, against SciPy."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from invnext_jax.errors import UserError
from invnext_jax.evaluation import video_scores
from invnext_jax.evaluation.metrics import intervals
from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages.paired_differences import Evaluation
from invnext_jax.evaluation.video_scores import VideoScores
from invnext_jax.sweeps.arms import Column
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedArm
from invnext_jax.sweeps.report.comparison import compare, make_cell, make_tables
from invnext_jax.sweeps.report.results import Results, Value
from invnext_jax.sweeps.report.table_text import describe_difference

BASE, OTHER = (0.61, 0.55, 0.70, 0.58), (0.64, 0.60, 0.69, 0.66)


def by_seed(numbers):
    return {seed: Value(number) for seed, number in enumerate(numbers)}


def test_mean_and_standard_error_over_seeds():
    cell = make_cell(by_seed(BASE))
    assert cell.mean == pytest.approx(np.mean(BASE), rel=1e-12)
    assert cell.standard_error == pytest.approx(stats.sem(BASE), rel=1e-12)
    assert (cell.n, cell.expected, cell.missing) == (4, 4, ())


def test_seeds_without_a_value_are_counted_as_missing():
    values = {**by_seed(BASE), 4: Value(missing="running"), 5: Value(missing="running")}
    cell = make_cell({**values, 6: Value(missing="failed: non-finite")})
    assert (cell.n, cell.expected) == (4, 7)
    assert cell.missing == ("running", "failed: non-finite")
    assert cell.mean == pytest.approx(np.mean(BASE), rel=1e-12)


def test_one_seed_has_no_standard_error_and_no_seed_no_mean():
    assert math.isnan(make_cell(by_seed(BASE[:1])).standard_error)
    assert math.isnan(make_cell({0: Value(missing="waiting")}).mean)


def test_the_difference_is_that_of_a_paired_t_test():
    difference = compare(by_seed(BASE), by_seed(OTHER))
    interval = stats.ttest_rel(OTHER, BASE).confidence_interval(0.95)
    assert difference.value == pytest.approx(np.mean(OTHER) - np.mean(BASE), rel=1e-12)
    assert (difference.low, difference.high) == pytest.approx(tuple(interval), rel=1e-9)
    assert (difference.n, difference.over) == (4, "seeds")


def test_only_seeds_of_both_arms_are_paired():
    base = {**by_seed(BASE[:3]), 3: Value(missing="running")}
    other = {seed: Value(OTHER[seed]) for seed in (1, 2, 3)}
    difference = compare(base, other)
    interval = stats.ttest_rel(OTHER[1:3], BASE[1:3]).confidence_interval(0.95)
    assert difference.n == 2
    assert (difference.low, difference.high) == pytest.approx(tuple(interval), rel=1e-9)
    nothing = compare({0: Value(0.5)}, {1: Value(0.5)})
    assert nothing.n == 0 and math.isnan(nothing.value)
    assert describe_difference(nothing, find_format("top1")) == "no seed in common"
    assert compare({0: Value(0.5)}, {0: Value(missing="running")}) is None


def with_scores(tmp_path, scores):
    """Returns the values of arms of one seed, with the score of each video."""
    values = []
    n = len(scores[0])
    for number, score_b in enumerate(scores):
        folder = tmp_path / str(number)
        folder.mkdir()
        video_scores.write(folder / "rows.npz", [VideoScores(np.arange(n), score_b, np.ones(n))])
        row = {"scores": {"file": "rows.npz", "row": 0}}
        evaluation = Evaluation(str(number), folder, {"manifests": {"val": "same"}})
        values.append({0: Value(score_b.mean(), row=(evaluation, row))})
    return values


def test_a_single_seed_is_compared_over_videos(tmp_path):
    rng, n = np.random.default_rng(0), 40
    scores = [rng.integers(0, 2, n).astype(float) for _ in range(2)]
    difference = compare(*with_scores(tmp_path, scores))
    expected = intervals.paired_difference(tuple(scores), (np.arange(n), np.arange(n)))
    assert (difference.n, difference.over) == (n, "videos")
    assert (difference.value, difference.low, difference.high) == expected[:1] + expected[2:4]


def test_equal_scores_of_all_videos_have_no_interval(tmp_path):
    score_b = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    difference = compare(*with_scores(tmp_path, [score_b, score_b]))
    assert (difference.value, difference.n) == (0.0, 40) and math.isnan(difference.low)
    assert describe_difference(difference, find_format("top1")) == "+0.0 (40 videos)"


def test_a_single_seed_without_scores_has_no_interval():
    difference = compare({0: Value(0.5)}, {0: Value(0.75)})
    assert difference.value == 0.25 and math.isnan(difference.low) and difference.n == 1


@pytest.fixture
def results():
    """Two groups of arms with two seeds; the second group has no baseline."""
    arms, values = [], {}
    for group, name, number in (("A", "a", 0.5), ("A", "b", 0.6), ("B", "a", 0.7)):
        for seed in (0, 1):
            marked = (group, name) == ("A", "a")
            arms.append(PlannedArm(name, group, seed, marked, {"K400": 75.8}, {"probe": "x"}))
        values[group, name, "K400"] = {0: Value(number), 1: Value(number + 0.1)}
    columns = {"K400": Column("probe", "top1")}
    sweep = ExpandedSweep("test", tuple(arms), columns, {})
    return Results(sweep, columns, {"K400": find_format("top1")}, values)


def test_each_group_is_a_table_with_its_baseline(results):
    first, second = make_tables(results)
    assert (first.title, second.title) == ("A", "B")
    assert [(row.name, row.is_baseline) for row in first.rows] == [("a", True), ("b", False)]
    assert first.rows[0].cells["K400"].difference is None
    assert first.rows[1].cells["K400"].difference.value == pytest.approx(0.1, rel=1e-9)
    assert first.rows[0].cells["K400"].reference == 75.8
    assert second.rows[0].cells["K400"].difference is None


def test_a_named_baseline_replaces_that_of_the_file(results):
    first, second = make_tables(results, "b")
    assert [row.is_baseline for row in first.rows] == [False, True]
    assert first.rows[0].cells["K400"].difference.value == pytest.approx(-0.1, rel=1e-9)
    with pytest.raises(UserError, match="--baseline=c is not an arm"):
        make_tables(results, "c")


def test_arms_without_a_column_have_no_cell(results):
    arms = results.sweep.arms + (PlannedArm("c", "A", 0, False, {}, {"other": "y"}),)
    sweep = dataclasses.replace(results.sweep, arms=arms)
    table = make_tables(dataclasses.replace(results, sweep=sweep))[0]
    assert table.rows[-1].name == "c" and not table.rows[-1].cells


def test_equal_differences_have_no_interval():
    difference = compare({0: Value(0.1), 1: Value(0.3)}, {0: Value(0.2), 1: Value(0.4)})
    assert difference.value == pytest.approx(0.1) and difference.n == 2
    assert math.isnan(difference.low) and math.isnan(difference.high)
