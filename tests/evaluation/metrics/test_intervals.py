import numpy as np
import pytest
from scipy import stats

from invnext_jax.evaluation.metrics import intervals


@pytest.mark.parametrize(("share", "count", "expected"), [(0.5, 100, 0.05), (0.2, 64, 0.05)])
def test_standard_error_is_binomial(share, count, expected):
    assert intervals.binomial_standard_error(share, count) == pytest.approx(expected)


def test_standard_error_is_zero_at_the_ends():
    for share in (0.0, 1.0):
        assert intervals.binomial_standard_error(share, 50) == 0


def test_standard_error_of_a_mean_equals_scipy():
    scores = np.random.default_rng(0).normal(size=37)
    assert intervals.mean_standard_error(scores) == pytest.approx(stats.sem(scores))
    assert np.isnan(intervals.mean_standard_error(scores[:1]))


def test_bootstrap_of_a_mean_agrees_with_scipy():
    scores = np.random.default_rng(1).gamma(2.0, size=200)
    got = intervals.bootstrap_mean(scores, replicates=20_000)
    other = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    )
    assert got.value == pytest.approx(scores.mean()) and got.n == 200
    assert got.standard_error == pytest.approx(other.standard_error, rel=0.03)
    spread = other.confidence_interval.high - other.confidence_interval.low
    assert got.low == pytest.approx(other.confidence_interval.low, abs=0.03 * spread)
    assert got.high == pytest.approx(other.confidence_interval.high, abs=0.03 * spread)


@pytest.mark.parametrize("videos", [6, 13, 60])
def test_bootstrap_covers_the_true_mean_at_its_level(videos):
    rng = np.random.default_rng(3)
    covered = []
    for seed in range(300):
        scores = rng.normal(size=videos)
        found = intervals.bootstrap_mean(scores, replicates=400, level=0.9, seed=seed)
        covered.append(found.low < 0 < found.high)
    assert abs(np.mean(covered) - 0.9) < 4 * np.sqrt(0.09 / 300)


def test_interval_of_a_mean_has_the_width_of_students_interval():
    scores = np.random.default_rng(5).normal(size=12)
    found = intervals.bootstrap_mean(scores, replicates=20_000)
    low, high = stats.t.interval(0.95, 11, scores.mean(), stats.sem(scores))
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)


def test_any_statistic_is_resampled_like_a_mean():
    scores = np.random.default_rng(4).normal(size=50)
    mean = intervals.bootstrap_mean(scores, replicates=300, seed=5)
    same = intervals.bootstrap(lambda rows: scores[rows].mean(), 50, replicates=300, seed=5)
    np.testing.assert_allclose(same, mean, rtol=1e-12)


def test_weights_give_a_ratio_of_sums():
    scores, weights = np.array([1.0, 0.0, 0.5]), np.array([3, 1, 0])
    assert intervals.bootstrap_mean(scores, weights).value == pytest.approx(0.75)
    without_score = np.array([1.0, 0.0, np.nan])
    assert intervals.bootstrap_mean(without_score, weights).value == pytest.approx(0.75)
    with pytest.raises(ValueError, match="positive weight"):
        intervals.bootstrap_mean(scores, np.zeros(3))


def test_windows_of_a_video_are_one_unit():
    scores = np.array([1.0, 0.0, 0.5, np.nan, np.nan, 0.25])
    videos, weights = np.array([7, 2, 7, 2, 4, 7]), np.array([1, 2, 1, 5, 1, 0])
    found, means, totals = intervals.average_by_video(scores, videos, weights)
    np.testing.assert_array_equal(found, [2, 7])
    np.testing.assert_allclose(means, [0.0, 0.75])
    np.testing.assert_allclose(totals, [2, 2])
    # Copies of the windows of a video do not make its mean more certain.
    rng = np.random.default_rng(9)
    base = rng.normal(size=30)
    copies, owners = np.repeat(base, 10), np.repeat(np.arange(30), 10)
    _, means, totals = intervals.average_by_video(copies, owners)
    error = intervals.bootstrap_mean(means, totals).standard_error
    assert error == pytest.approx(stats.sem(base), rel=0.1)
    assert intervals.bootstrap_mean(copies).standard_error < 0.5 * error


def test_results_depend_only_on_the_seed():
    scores = np.random.default_rng(6).normal(size=40)
    assert intervals.bootstrap_mean(scores, seed=1) == intervals.bootstrap_mean(scores, seed=1)
    assert intervals.bootstrap_mean(scores, seed=1) != intervals.bootstrap_mean(scores, seed=2)


def test_chunks_do_not_change_the_result(monkeypatch):
    scores = np.random.default_rng(7).normal(size=40)
    whole = intervals.bootstrap_mean(scores, replicates=100)
    monkeypatch.setattr(intervals, "CHUNK", 120)
    assert intervals.bootstrap_mean(scores, replicates=100) == whole


def test_pairs_cancel_the_difficulty_of_the_videos():
    rng = np.random.default_rng(8)
    difficulty = rng.normal(0, 5, 100)
    first, second = difficulty, difficulty + 0.1 + 0.01 * rng.normal(size=100)
    rows = np.arange(100)
    order = rng.permutation(100)[:90]
    found = intervals.paired_difference((first, second[order]), (rows, rows[order]))
    assert found.n == 90 and found.excludes_zero
    assert found.value == pytest.approx((second - first)[order].mean())
    error = stats.sem((second - first)[order])
    assert found.standard_error == pytest.approx(error, rel=0.1)


def test_weighted_pairs_compare_ratios_of_sums():
    scores = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    weights = np.array([1, 3]), np.array([1, 3])
    rows = np.array([4, 9]), np.array([4, 9])
    assert intervals.paired_difference(scores, rows, weights).value == pytest.approx(0.75)
    with pytest.raises(ValueError, match="in common"):
        intervals.paired_difference(scores, (rows[0], rows[1] + 20))


def test_class_means_are_those_of_the_classes_of_each_replicate(monkeypatch):
    monkeypatch.setattr(intervals, "CLASS_CHUNK", 50)
    rng = np.random.default_rng(0)
    score_b, class_b = rng.random(12), rng.integers(4, size=12) * 10
    rows_rb = rng.integers(12, size=(30, 12))
    expected = [
        np.mean([score_b[rows][class_b[rows] == n].mean() for n in set(class_b[rows].tolist())])
        for rows in rows_rb
    ]
    np.testing.assert_allclose(intervals._class_mean(score_b, class_b)(rows_rb), expected)
