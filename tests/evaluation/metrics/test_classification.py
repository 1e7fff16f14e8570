import numpy as np
import pytest
from sklearn import metrics as reference

from invnext_jax.evaluation.metrics import classification


def sample(videos=200, classes=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(videos, classes)), rng.integers(classes, size=videos)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_equals_scikit_learn(k):
    scores, labels = sample()
    expected = reference.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(12))
    assert classification.is_in_top(scores, labels, k).mean() == pytest.approx(expected)


def test_ties_follow_argmax():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    for k, expected in ((1, [False, True]), (2, [True, True])):
        got = classification.is_in_top(scores, np.array([1, 1]), k)
        np.testing.assert_array_equal(got, expected)


def test_unknown_labels_and_missing_scores_are_wrong():
    scores = np.array([[0.1, 0.2], [0.1, 0.2], [np.nan, np.nan], [np.nan, 0.0]])
    got = classification.is_in_top(scores, np.array([-1, 2, 0, 1]), 2)
    np.testing.assert_array_equal(got, [False, False, False, True])


def test_recalls_of_classes_equal_scikit_learn():
    scores, labels = sample(classes=5)
    right = classification.is_in_top(scores, labels)
    classes, recalls, counts = classification.class_recalls(right, labels)
    expected = reference.recall_score(labels, scores.argmax(1), average=None)
    np.testing.assert_allclose(recalls, expected)
    np.testing.assert_array_equal(classes, np.arange(5))
    np.testing.assert_array_equal(counts, np.bincount(labels))


def recall_by_loops(scores, labels, k, train_classes):
    """Applies the rules of EPIC-KITCHENS-100 to one video at a time."""
    kept = [i for i, label in enumerate(labels) if label in train_classes]
    present = sorted({int(labels[i]) for i in kept})
    recalls = []
    for label in present:
        hits, total = 0, 0
        for i in (i for i in kept if labels[i] == label):
            best = sorted(present, key=lambda c: -scores[i, c])[:k]
            hits, total = hits + (label in best), total + 1
        recalls.append(hits / total)
    return sum(recalls) / len(recalls)


def test_class_mean_recall_equals_loops():
    scores, labels = sample(videos=90, classes=30)
    labels = labels // 2 * 2  # odd classes never occur, so their scores are ignored
    train_classes = np.arange(0, 24)
    found = classification.class_mean_recall(scores, labels, k=5, train_classes=train_classes)
    assert found.value == pytest.approx(recall_by_loops(scores, labels, 5, set(train_classes)))
    np.testing.assert_array_equal(found.kept_b, labels < 24)
    assert not found.correct_b[~found.kept_b].any()
    np.testing.assert_array_equal(found.classes_c, np.unique(labels[labels < 24]))


def test_class_mean_recall_of_hand_made_scores():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [0.0, 0.0, 9.0]])
    found = classification.class_mean_recall(scores, np.array([0, 1, 1, -1]), k=1)
    # Class 2 does not occur. Video 1 is wrong, and video 2 is right without class 2.
    assert found.value == pytest.approx((1 + 0.5) / 2)
    np.testing.assert_array_equal(found.correct_b, [True, False, True, False])


def test_without_videos_the_recall_is_not_a_number():
    found = classification.class_mean_recall(np.zeros((2, 3)), np.array([1, 2]), train_classes=[0])
    assert np.isnan(found.value) and not found.kept_b.any()
