import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invnext_jax.evaluation.metrics import boxes

corner = st.integers(0, 12)
box = st.tuples(corner, corner, corner, corner).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def fill(box_4):
    """Draws a box with integer corners as a set of cells."""
    x0, y0, x1, y1 = box_4
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@settings(max_examples=200, deadline=None)
@given(box, box)
def test_overlaps_equal_counted_cells(one, other):
    first, second = fill(one), fill(other)
    union = len(first | second)
    overlap = len(first & second) / union if union else 0.0
    low, high = np.minimum(one, other)[:2], np.maximum(one, other)[2:]
    hull = len(fill((*low, *high)))
    assert boxes.iou(np.array(one), np.array(other)) == pytest.approx(overlap)
    expected = overlap - ((hull - union) / hull if hull else 0.0)
    assert boxes.generalized_iou(np.array(one), np.array(other)) == pytest.approx(expected)


def test_hand_values():
    one, other = np.array([0, 0, 2, 2.0]), np.array([[1, 1, 3, 3], [0, 0, 2, 2], [4, 0, 6, 2.0]])
    np.testing.assert_allclose(boxes.iou(one, other), [1 / 7, 1, 0])
    np.testing.assert_allclose(boxes.generalized_iou(one, other), [1 / 7 - 2 / 9, 1, -1 / 3])


def test_reversed_corners_have_no_area():
    assert boxes.iou(np.array([1, 0, 0, 1.0]), np.array([0, 0, 1, 1.0])) == 0


def test_mean_iou_counts_pairs_with_truth_after_the_first_frame():
    truth = np.tile(np.array([0, 0, 1, 1.0]), (3, 3, 1))
    present = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    predicted = truth.copy()
    predicted[0] = 0  # frame 0 is given
    predicted[1, 0] = [0, 0, 0.5, 1]
    predicted[2, 1] = np.nan
    found = boxes.score_tracks(predicted, truth, present)
    # Object 2 is absent in frame 0. Pairs: (1, 0), (2, 0), (2, 1).
    assert found.pairs == 3
    assert found.mean_iou == pytest.approx((0.5 + 1 + 0) / 3)


def test_without_pairs_there_is_no_score():
    found = boxes.score_tracks(np.zeros((2, 1, 4)), np.zeros((2, 1, 4)), np.zeros((2, 1), bool))
    assert np.isnan(found.mean_iou) and found.pairs == 0
