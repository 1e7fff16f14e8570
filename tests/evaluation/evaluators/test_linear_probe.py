"""Linear probe: finds linear structure, stays at chance on noise, and matches scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import baselines, classification, linear_probe
from invnext_jax.evaluation.metrics import intervals

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def make_features(signal, seed=0, videos=600, width=32, classes=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=videos).astype(np.int32)
    directions = np.linalg.qr(rng.normal(size=(width, classes)))[0].T
    x = rng.normal(size=(videos, width)) + signal * directions[labels]
    return x.astype(np.float32), labels


def split(x, labels, at=400):
    train_x, val_x = linear_probe.standardize(x[:at], x[at:])
    return train_x, labels[:at], val_x, labels[at:]


def test_linearly_separable_label_is_found():
    result = linear_probe.fit_linear(*split(*make_features(8.0)), inverse_penalties=PENALTIES)
    assert result.top1 >= 0.95
    assert result.videos == 200
    assert result.classes == 8
    assert result.converged


def test_noise_stays_at_chance():
    x, labels = make_features(0.0, videos=1400)
    result = linear_probe.fit_linear(*split(x, labels, 600), inverse_penalties=PENALTIES)
    assert abs(result.top1 - 1 / 8) < 4 * intervals.binomial_standard_error(1 / 8, 800)
    assert result.train_top1 > result.top1


@pytest.mark.parametrize(("videos", "width"), [(120, 10), (60, 90)])
def test_solution_equals_scikit_learn(videos, width):
    x, labels = make_features(2.0, videos=videos, width=width)
    x = x * np.geomspace(1, 100, width)  # badly scaled on purpose
    z, _ = linear_probe.standardize(x, x)
    reference = LogisticRegression(C=0.3, tol=1e-10, max_iter=100_000)
    reference.fit((x - x.mean(axis=0)) / x.std(axis=0), labels)
    expected = reference.decision_function((x - x.mean(axis=0)) / x.std(axis=0))
    model = linear_probe.fit_logistic(z, labels, 0.3)
    found = z @ model.weights_dk + model.offset_k
    found, expected = (v - v.mean(axis=1, keepdims=True) for v in (found, expected))
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


def test_standardized_features_keep_their_distances():
    x = make_features(2.0, videos=50, width=80)[0].astype(np.float64)
    z, other = linear_probe.standardize(x[:40], x[40:])
    plain = (x - x[:40].mean(axis=0)) / x[:40].std(axis=0)
    np.testing.assert_allclose(z @ z.T, plain[:40] @ plain[:40].T, atol=1e-6)
    np.testing.assert_allclose(other @ z.T, plain[40:] @ plain[:40].T, atol=1e-6)


def test_constant_feature_does_not_change_the_accuracy():
    x, labels = make_features(8.0)
    x[:, 3] = 7.0
    assert linear_probe.fit_linear(*split(x, labels), inverse_penalties=PENALTIES).top1 >= 0.95


def test_penalty_is_chosen_on_training_videos_only():
    train_x, train_y, val_x, val_y = split(*make_features(3.0))
    one = linear_probe.fit_linear(train_x, train_y, val_x, val_y, inverse_penalties=PENALTIES)
    other = linear_probe.fit_linear(
        train_x, train_y, val_x[:50], np.roll(val_y, 1)[:50], inverse_penalties=PENALTIES
    )
    assert one.inverse_penalty == other.inverse_penalty
    assert one.inverse_penalty in PENALTIES


def test_row_norm_ignores_scale_and_offset_of_a_video():
    x, _ = make_features(4.0)
    rng = np.random.default_rng(1)
    moved = x * rng.uniform(0.5, 2.0, size=(len(x), 1)) + rng.normal(size=(len(x), 1))
    np.testing.assert_allclose(
        linear_probe.normalize_rows(moved), linear_probe.normalize_rows(x), atol=1e-4
    )


def test_forest_fits_a_nonlinear_relation():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(900, 2))
    labels = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    assert baselines.fit_forest(*split(x, labels, 600), trees=50).top1 > 0.95
    assert linear_probe.fit_linear(*split(x, labels, 600), inverse_penalties=(1.0,)).top1 < 0.7


def test_a_task_of_one_class_is_refused():
    with pytest.raises(UserError, match="label_shape has only one class"):
        classification.check_classes(np.zeros(5, np.int32), "shape")


def test_a_split_without_a_label_is_refused():
    labels = np.array([-1, 2, -1, 0])
    np.testing.assert_array_equal(
        classification.find_labeled(labels, "shape", "training"), [False, True, False, True]
    )
    with pytest.raises(UserError, match="label_shape has no labeled video in the held-out"):
        classification.find_labeled(labels[::2], "shape", "held-out")


def test_numbers_that_are_no_classes_are_refused():
    labels = np.array([-1, 2, 2**20 + 1], np.int32)
    with pytest.raises(UserError, match="label_shape has the class 1048577 in the training"):
        classification.find_labeled(labels, "shape", "training")
    assert classification.find_labeled(labels - 1, "shape", "training").tolist() == [
        False,
        True,
        True,
    ]
