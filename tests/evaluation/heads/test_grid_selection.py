import ml_collections
import numpy as np

from invnext_jax.evaluation.heads import grid_selection as gs

GRID = [{"learning_rate": 1e-3, "weight_decay": 0.0}, {"learning_rate": 1e-4, "weight_decay": 0.1}]


def scores(correct_gb):
    """Makes scores for two classes. A prediction is correct where `correct_gb` is 1."""
    labels = np.arange(len(correct_gb[0])) % 2
    right = np.asarray(correct_gb, bool)
    predicted = np.where(right, labels, 1 - labels)
    return gs.GridScores(np.eye(2)[predicted] * 0.8 + 0.1, labels, np.arange(len(labels)))


def test_both_choices_are_reported_and_labeled():
    held_out = scores([[1, 1, 0, 1], [1, 0, 0, 1]])
    val = scores([[1, 0, 0, 0, 1], [1, 1, 1, 0, 1]])
    options = {"evaluator": "probe", "name": "encoder", "what": "attentive", "task": "a"}
    rows = gs.make_grid_rows(held_out, val, GRID, **options, classes=2)
    assert [row.input for row in rows] == ["attentive", "attentive, best on val"]
    assert [row.value for row in rows] == [0.4, 0.8]
    assert [row.details["learning_rate"] for row in rows] == [1e-3, 1e-4]
    np.testing.assert_allclose(rows[0].standard_error, np.sqrt(0.4 * 0.6 / 5))
    assert rows[0].n == 5 and rows[0].details["classes"] == 2
    assert [head["held_out_top1"] for head in rows[0].details["grid"]] == [0.75, 0.5]
    np.testing.assert_array_equal(rows[0].scores.score_b, [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(rows[0].scores.index_b, range(5))


def test_the_first_of_equal_heads_is_chosen():
    equal = scores([[1, 0], [1, 0]])
    options = {"evaluator": "probe", "name": "encoder", "what": "attentive", "task": "a"}
    rows = gs.make_grid_rows(equal, equal, GRID, **options)
    assert [row.details["learning_rate"] for row in rows] == [1e-3, 1e-3]


def test_a_head_that_diverged_is_not_chosen():
    found = scores([[1, 1], [1, 0]])
    options = {"evaluator": "probe", "name": "encoder", "what": "attentive", "task": "a"}
    grid = [{"learning_rate": 9.0, "diverged": True}, {"learning_rate": 1e-3, "diverged": False}]
    rows = gs.make_grid_rows(found, found, grid, **options)
    assert [row.details["learning_rate"] for row in rows] == [1e-3, 1e-3]


def test_a_single_head_has_one_row_and_no_held_out_videos():
    found = scores([[1, 0]])
    options = {"evaluator": "probe", "name": "encoder", "what": "attentive", "task": "a"}
    (row,) = gs.make_grid_rows(None, found, GRID[:1], **options)
    assert (row.input, row.value) == ("attentive", 0.5)
    assert row.details["grid"] == [{**GRID[0], "val_top1": 0.5}]
    settings = ml_collections.ConfigDict(
        {"learning_rates": (1e-3,), "weight_decays": (0.0,), "held_out": 0.2}
    )
    assert gs.held_out_share(settings) == 0
    assert not gs.hold_out_rows(100, 0.0, seed=0).any()
    assert gs.scored_rows(gs.hold_out_rows(100, 0.0, seed=0)) == {"val": None}
    settings.weight_decays = (0.0, 0.1)
    assert gs.held_out_share(settings) == 0.2


def test_probabilities_are_averaged_over_the_views_of_a_video():
    """The third view outvotes the other two by its probability, not by its class."""
    prob = np.array([[[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.9, 0.1]]])
    index = np.array([7, 7, 7, 2, 9, -1])
    found = gs.average_views(prob, np.array([1, 1, 1, 0, -1, 0]), index)
    np.testing.assert_array_equal(found.index_b, [2, 7])
    np.testing.assert_allclose(found.prob_gbk, [[[0.3, 0.7], [1.3 / 3, 1.7 / 3]]])
    np.testing.assert_array_equal(found.labels_b, [0, 1])
    np.testing.assert_array_equal(found.correct_gb, [[False, True]])
    assert gs.average_views(prob, np.full(6, -1), index) is None


def test_held_out_rows():
    held = gs.hold_out_rows(100, 0.2, seed=0)
    assert held.sum() == 20
    np.testing.assert_array_equal(held, gs.hold_out_rows(100, 0.2, seed=0))
    assert (held != gs.hold_out_rows(100, 0.2, seed=1)).any()
    assert gs.hold_out_rows(2, 0.01, seed=0).sum() == 1
    assert gs.hold_out_rows(3, 1.0, seed=0).sum() == 2
