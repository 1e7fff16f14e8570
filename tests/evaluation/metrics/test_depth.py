import numpy as np
import pytest

from invnext_jax.evaluation.metrics import depth
from invnext_jax.evaluation.metrics.depth import DepthRange

WIDE = DepthRange(0.1, 100.0)


def test_hand_values():
    truth = np.array([[[2.0, 4.0], [0.0, 10.0]]])
    predicted = np.array([[[2.4, 2.0], [7.0, 12.6]]])
    found = depth.score_depth(predicted, truth, WIDE)
    assert found.pixels == 3
    assert found.abs_rel == pytest.approx((0.2 + 0.5 + 0.26) / 3)
    assert found.delta1 == pytest.approx(1 / 3)


def test_ranges_of_the_data_sets():
    values = np.array([0.001, 0.0011, 10.0, 10.1, 80.0, 80.1, np.nan, np.inf, 0.1, -1.0])
    np.testing.assert_array_equal(depth.SCANNET.valid(values), [0, 1, 1, 0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(depth.KITTI.valid(values), [0, 0, 1, 1, 1, 0, 0, 0, 1, 0])


def test_predictions_are_clamped_to_the_range():
    truth = np.array([[[10.0, 0.5]]])
    limits = DepthRange(0.5, 10.0)
    found = depth.score_depth(np.array([[[400.0, -3.0]]]), truth, limits)
    assert found == (0.0, 1.0, 2)
    assert depth.score_depth(np.full((1, 1, 2), np.nan), truth, limits).abs_rel == 0.475


def test_without_valid_pixels_there_is_no_score():
    empty = np.zeros((2, 2, 2))
    for score in (depth.score_depth, depth.score_aligned_depth):
        found = score(empty + 1, empty, WIDE)
        assert np.isnan(found.abs_rel) and np.isnan(found.delta1) and found.pixels == 0


def aligned_by_polyfit(disparity, truth, limits):
    """Alignment and frame averages with `np.polyfit` and plain loops."""
    valid = (truth >= limits.low) & (truth <= limits.high)
    scale, shift = np.polyfit(disparity[valid], 1 / truth[valid], 1)
    found = np.minimum(1 / np.maximum(scale * disparity + shift, 1e-3), limits.high)
    errors, close = [], []
    for one, other, inside in zip(found, truth, valid, strict=True):
        if inside.any():
            ratio = one[inside] / other[inside]
            errors.append(np.mean(np.abs(ratio - 1)))
            close.append(np.mean(np.maximum(ratio, 1 / ratio) < 1.25))
    return np.mean(errors), np.mean(close)


@pytest.mark.parametrize("is_disparity", [True, False])
def test_alignment_equals_polyfit(is_disparity):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 30, (4, 6, 5))
    truth[0, :3] = 0
    truth[2] = 0
    predicted = 1 / np.maximum(truth, 0.5) * 3 + 0.4 + rng.normal(0, 0.2, truth.shape)
    predicted = np.maximum(predicted, 0.05)
    given = predicted if is_disparity else 1 / predicted
    found = depth.score_aligned_depth(given, truth, WIDE, is_disparity=is_disparity)
    expected = aligned_by_polyfit(predicted, truth, WIDE)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-9)
    assert found.pixels == (truth > 0).sum()


def test_alignment_ignores_scale_and_shift_of_the_disparity():
    truth = np.random.default_rng(1).uniform(1, 20, (3, 4, 4))
    found = depth.score_aligned_depth(7 / truth + 2, truth, WIDE, is_disparity=True)
    np.testing.assert_allclose(found[:2], (0, 1), atol=1e-9)


def test_constant_predictions_are_aligned_to_the_mean_disparity():
    truth = np.array([[[1.0, 2.0]]])
    found = depth.score_aligned_depth(np.full((1, 1, 2), 5.0), truth, WIDE)
    assert found.abs_rel == pytest.approx((1 / 3 + 1 / 3) / 2)


def test_frames_have_equal_weight_after_alignment():
    truth = np.array([[[1.0, 1.0, 1.0, 1.0]], [[2.0, 0.0, 0.0, 0.0]]])
    found = depth.score_aligned_depth(np.ones((2, 1, 4)), truth, WIDE)
    disparity = (4 * 1 + 0.5) / 5
    expected = np.mean([abs(1 / disparity - 1), abs(1 / disparity - 2) / 2])
    assert found.abs_rel == pytest.approx(expected)
