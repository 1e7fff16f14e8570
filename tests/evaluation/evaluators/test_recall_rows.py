"""Class-mean recall of a grid equals values computed by hand and with scikit-learn."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import recall_score

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import recall_rows
from invnext_jax.evaluation.evaluators.recall_rows import Measured
from invnext_jax.evaluation.heads.grid_selection import GridScores

HEADS = [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}, {"learning_rate": 1.0, "diverged": True}]
NAMES = {"evaluator": "anticipation", "name": "encoder", "task": "verb", "what": "encoder"}


def scores(predicted_gb, labels, classes=4):
    """Makes scores with probability 0.7 for the predicted class and 0.1 for the other classes."""
    prob_gbk = 0.1 + 0.6 * np.eye(classes)[np.asarray(predicted_gb)]
    return GridScores(prob_gbk, np.asarray(labels), np.arange(10, 10 + len(labels)))


@pytest.fixture
def measured():
    held_out = scores([[0, 1, 1], [0, 1, 2], [0, 1, 2]], [0, 1, 2])
    # Class 3 has no training videos: its video is dropped.
    labels = [0, 0, 0, 0, 1, 3]
    val = scores([[0, 0, 0, 1, 1, 3], [0, 0, 1, 2, 0, 3], [0, 0, 0, 0, 1, 3]], labels)
    train = np.array([0, 1, 2, 2, -1])
    return Measured(held_out, val, train, train)


def test_values_by_hand(measured):
    rows = recall_rows.make_recall_rows(measured, HEADS, 1, extra=7, **NAMES)
    assert [row.input for row in rows] == ["encoder", "encoder, best on val"]
    assert [row.metric for row in rows] == ["class_mean_recall@1"] * 2
    # Head 1 is best on held-out training videos: 2 of 4 of class 0, 0 of 1 of class 1. Only the
    # evaluated classes count, so its prediction of class 2 becomes class 0.
    assert rows[0].details["learning_rate"] == 1e-2
    assert rows[0].value == pytest.approx((3 / 4 + 0) / 2)
    # Head 0 is best on val: 3 of 4 and 1 of 1. The third head diverged.
    assert rows[1].value == pytest.approx((3 / 4 + 1) / 2)
    found = [head["val_recall"] for head in rows[0].details["grid"]]
    np.testing.assert_allclose(found, [0.875, 0.375, 1.0])
    details = rows[0].details
    assert (details["classes"], details["chance"], details["dropped"]) == (2, 0.5, 1)
    assert details["extra"] == 7 and rows[0].n == 5
    np.testing.assert_array_equal(rows[0].scores.class_b, [0, 0, 0, 0, 1])


def test_a_single_head_has_one_row(measured):
    val = measured.val
    val = GridScores(val.prob_gbk[1:2], val.labels_b, val.index_b)
    alone = Measured(None, val, measured.train_b, measured.train_b)
    (row,) = recall_rows.make_recall_rows(alone, HEADS[1:2], 1, **NAMES)
    assert row.input == "encoder" and row.value == pytest.approx((3 / 4 + 0) / 2)
    assert list(row.details["grid"][0]) == ["learning_rate", "val_recall"]


def test_value_is_the_weighted_mean_of_the_scores_and_scikit_learns_recall(measured):
    for row in recall_rows.make_recall_rows(measured, HEADS, 1, **NAMES):
        np.testing.assert_array_equal(row.scores.index_b, range(10, 15))
        mean = np.average(row.scores.score_b, weights=row.scores.weight_b)
        assert mean == pytest.approx(row.value)
    labels, correct = np.array([0, 0, 0, 0, 1]), row.scores.score_b
    predicted = np.where(correct, labels, 1 - labels)
    assert row.value == pytest.approx(recall_score(labels, predicted, average="macro"))


def test_more_classes_count_for_a_higher_k(measured):
    rows = recall_rows.make_recall_rows(measured, HEADS, 2, **NAMES)
    assert [row.value for row in rows] == [1.0, 1.0] and rows[0].details["chance"] == 1.0
    assert rows[0].standard_error == 0.0


def test_standard_error_is_that_of_independent_classes():
    """For two classes with 200 videos and recalls of 0.5 and 0.9, the standard error is known."""
    labels = np.repeat([0, 1], 200)
    predicted = labels.copy()
    predicted[:100], predicted[200:220] = 1, 0
    val = scores([predicted], labels, classes=2)
    rows = recall_rows.make_recall_rows(Measured(val, val, labels, labels), HEADS[:1], 1, **NAMES)
    assert rows[0].value == pytest.approx(0.7)
    expected = np.sqrt(0.25 / 200 + 0.09 / 200) / 2
    assert rows[0].standard_error == pytest.approx(expected, rel=0.06)


def test_no_known_class_is_a_one_sentence_error(measured):
    other = measured._replace(train_b=np.array([2, 2]))
    with pytest.raises(UserError, match="no held-out video has a class of verb"):
        recall_rows.make_recall_rows(other, HEADS, 5, **NAMES)


def test_a_single_video_has_no_standard_error(measured):
    row = recall_rows.make_recall_rows(measured, HEADS, 1, **NAMES)[0]
    assert row.to_json()["standard_error"] == row.standard_error > 0
    single = dataclasses.replace(row, n=1, standard_error=0.0)
    assert single.to_json()["standard_error"] is None
