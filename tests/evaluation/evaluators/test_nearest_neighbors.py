"""Nearest-neighbor evaluators: accuracy, few-shot draws, and checks of the options."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import classification, evaluator, nearest_neighbors
from invnext_jax.evaluation.nearest_neighbors import l2_normalize


def make_data(signal, seed=0, videos=400, width=16, classes=4):
    rng = np.random.default_rng(seed)
    labels_b = rng.integers(classes, size=videos)
    x_bd = rng.normal(size=(videos, width)) + signal * np.eye(classes, width)[labels_b]
    x_bd = l2_normalize(x_bd)
    return x_bd[:240], labels_b[:240], x_bd[240:], labels_b[240:]


def test_accuracy_equals_scikit_learn():
    train_x, train_y, val_x, val_y = make_data(2.0)
    result = nearest_neighbors.classify(train_x, train_y, val_x, val_y, k=10, temperature=0.07)
    model = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(train_x, train_y)
    assert result.top1 == model.score(val_x, val_y)
    np.testing.assert_array_equal(result.correct_b, model.predict(val_x) == val_y)
    # If no queries are given, scikit-learn excludes each video from its own neighbors.
    distance_bk, neighbor_bk = model.kneighbors()
    votes_bkc = np.exp((1 - distance_bk) / 0.07)[..., None] * np.eye(4)[train_y[neighbor_bk]]
    assert result.train_top1 == np.mean(votes_bkc.sum(axis=1).argmax(axis=1) == train_y)


def test_noise_stays_at_chance():
    result = nearest_neighbors.classify(*make_data(0.0, videos=2240), k=20, temperature=0.07)
    assert abs(result.top1 - 1 / 4) < 4 * result.standard_error


def test_more_neighbors_than_videos_are_all_videos():
    train_x, train_y, val_x, val_y = make_data(2.0)
    few = nearest_neighbors.classify(
        train_x[:30], train_y[:30], val_x, val_y, k=10**6, temperature=0.07
    )
    all_of_them = nearest_neighbors.classify(
        train_x[:30], train_y[:30], val_x, val_y, k=30, temperature=0.07
    )
    assert few.top1 == all_of_them.top1


def test_numbers_of_neighbors_are_those_that_are_used():
    labels = {"shape": np.arange(48) % 2, "color": np.array([0, 1, -1] * 4)}
    found = nearest_neighbors.count_neighbors((10, 100, 200), labels, ("shape", "color"))
    assert found == [(10, "shape"), (8, "color"), (48, "shape")]


@pytest.mark.parametrize("interaction", [0.0, 2.0])
def test_standard_error_over_draws_and_videos_is_that_of_repeated_experiments(interaction):
    """The mean of b effects of videos, r of draws, and r b of both has a known variance."""
    rng, (r, b) = np.random.default_rng(0), (5, 40)
    found = []
    for _ in range(300):
        effects = rng.normal(size=b) + 0.5 * rng.normal(size=(r, 1))
        found.append(
            nearest_neighbors.standard_error_of_draws(
                effects + interaction * rng.normal(size=(r, b))
            )
        )
    expected = np.sqrt(1 / b + 0.25 / r + interaction**2 / (r * b))
    assert np.mean(np.square(found)) == pytest.approx(expected**2, rel=0.15)


def test_few_shot_has_no_standard_error_for_one_held_out_video():
    train_x, train_y, val_x, val_y = make_data(2.0)
    options = {"shots": 2, "draws": 3, "k": 10, "temperature": 0.07, "seed": 0}
    data = train_x, train_y, val_x[:1], val_y[:1]
    result = nearest_neighbors.classify_few_shot(*data, **options)
    assert result.standard_error is None
    (row,) = classification.make_rows("few_shot", "e", "x", {"t": result}, np.arange(1))
    assert row.to_json()["standard_error"] is None


def test_standard_errors_that_are_not_finite_are_unknown():
    row = evaluator.Row("e", "encoder", "x", "t", "top1", 0.5, float("nan"), 1)
    assert row.to_json()["standard_error"] is None


def test_each_draw_has_the_given_number_of_videos_of_each_class():
    labels_b = np.repeat([3, 5, 9], [50, 50, 2])
    rows = nearest_neighbors.draw_shots(labels_b, 5, np.random.default_rng(0))
    assert np.unique(rows).size == len(rows)
    assert np.unique(labels_b[rows], return_counts=True)[1].tolist() == [5, 5, 2]
    other = nearest_neighbors.draw_shots(labels_b, 5, np.random.default_rng(1))
    assert rows.tolist() != other.tolist()


def test_few_shot_accuracy_is_the_mean_over_draws_and_grows_with_the_shots():
    options = {"k": 10, "temperature": 0.07, "seed": 0}
    data = make_data(2.5)
    one, two, many = (
        nearest_neighbors.classify_few_shot(*data, shots=shots, draws=draws, **options)
        for shots, draws in ((1, 1), (1, 4), (20, 4))
    )
    assert two.top1 == np.mean(two.correct_b)
    assert set(np.unique(two.correct_b)) <= {0, 0.25, 0.5, 0.75, 1}
    assert many.top1 > two.top1 + 2 * two.standard_error
    assert one.top1 == np.mean(one.correct_b) and one.standard_error > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neighbors", ()),
        ("neighbors", (0, 5)),
        ("shots", (-1,)),
        ("temperature", 0.0),
        ("draws", 0),
    ],
)
def test_invalid_options_are_refused(name, value):
    config = probe_config.get_config("tiny")
    with config.unlocked():
        config.knn[name] = value
    with pytest.raises(UserError, match=f"config.knn.{name}="):
        nearest_neighbors.NearestNeighbors().check_config(config)


def test_classes_with_fewer_videos_than_shots_are_noted():
    labels = {"shape": np.array([0, 0, 0, 1, 1, 1, -1]), "color": np.array([0, 0, 0, 0, 0, 2, -1])}
    found = nearest_neighbors.describe_small_classes((1, 3), labels, ("shape", "color"))
    assert found == [
        "Few shot: 1 of 2 classes of color have fewer than 3 training videos (the smallest 1); all "
        "of them are used."
    ]
