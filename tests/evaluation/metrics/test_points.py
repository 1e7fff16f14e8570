import numpy as np
import pytest

from invnext_jax.evaluation.metrics import points


def score_by_loops(predicted, hidden, truth, occluded, query, mode):
    """Applies the definitions of TAP-Vid to one point and frame at a time."""
    pairs = [
        (n, t)
        for n in range(truth.shape[0])
        for t in range(truth.shape[1])
        if (t > query[n] if mode == "first" else t != query[n])
    ]
    agreement = sum(hidden[n, t] == occluded[n, t] for n, t in pairs) / len(pairs)
    within, jaccard = [], []
    for threshold in (1, 2, 4, 8, 16):
        true_positive = false_positive = false_negative = close_count = visible_count = 0
        for n, t in pairs:
            close = np.linalg.norm(predicted[n, t] - truth[n, t]) < threshold
            visible, shown = not occluded[n, t], not hidden[n, t]
            visible_count += visible
            close_count += close and visible
            hit = visible and shown and close
            true_positive += hit
            false_positive += shown and not hit
            false_negative += visible and not hit
        within.append(close_count / visible_count)
        jaccard.append(true_positive / (true_positive + false_positive + false_negative))
    return np.mean(within), agreement, np.mean(jaccard), within, jaccard


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_metrics_equal_loops(mode):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 256, (20, 12, 2))
    predicted = truth + rng.normal(0, 4, truth.shape)
    occluded, hidden = rng.random((2, 20, 12)) < 0.3
    query = rng.integers(0, 6, 20)
    found = points.score_points(predicted, hidden, truth, occluded, query, mode=mode)
    expected = score_by_loops(predicted, hidden, truth, occluded, query, mode)
    for one, other in zip(found[:5], expected, strict=True):
        np.testing.assert_allclose(one, other)


def test_perfect_and_distant_predictions():
    truth = np.random.default_rng(1).uniform(0, 256, (3, 5, 2))
    occluded = np.zeros((3, 5), bool)
    query = np.zeros(3, int)
    perfect = points.score_points(truth, occluded, truth, occluded, query)
    assert perfect[:3] == (1, 1, 1) and perfect.pairs == 12
    distant = points.score_points(truth + 50, occluded, truth, occluded, query)
    assert distant[:3] == (0, 1, 0)
    missing = points.score_points(np.full_like(truth, np.nan), occluded, truth, occluded, query)
    assert missing[:3] == (0, 1, 0)


def test_thresholds_are_exclusive_pixels_of_256():
    truth = points.to_raster(np.zeros((1, 2, 2)))
    shown = np.zeros((1, 2), bool)
    for offset, within in ((0.999, (1, 1, 1, 1, 1)), (1.0, (0, 1, 1, 1, 1)), (16, (0,) * 5)):
        predicted = truth + [offset, 0]
        assert points.score_points(predicted, shown, truth, shown, np.array([0])).within == within
    np.testing.assert_allclose(points.to_raster(np.array([0.5, 1])), [128, 256])


def test_points_that_are_never_visible_have_no_score():
    zeros, occluded = np.zeros((1, 3, 2)), np.ones((1, 3), bool)
    found = points.score_points(zeros, occluded, zeros, occluded, np.array([0]))
    assert np.isnan(found.average_jaccard)


def test_unknown_modes_are_errors():
    zeros, shown = np.zeros((1, 3, 2)), np.zeros((1, 3), bool)
    with pytest.raises(ValueError, match="'last'"):
        points.score_points(zeros, shown, zeros, shown, np.array([0]), mode="last")
