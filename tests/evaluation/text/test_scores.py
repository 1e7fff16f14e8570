"""Rows from embeddings: hand-computed values, several captions of a video, missing videos."""

import functools

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.text import scores
from invnext_jax.evaluation.truth.captions import Captions, Choices

make_row = functools.partial(Row, evaluator="e", name="n", input="i", details={"temperature": 1.0})
# Videos of the manifest rows 4, 1 and 7; row 2 cannot be read.
INDEX_B = np.array([4, 1, 7])
VIDEO_BD = np.eye(3)
WORDS = {"x": [1, 0, 0], "y": [0, 1, 0], "z": [0, 0, 1], "xy": [0.8, 0.6, 0], "yx": [0.6, 0.8, 0]}


def embed(texts):
    return np.array([WORDS[text] for text in texts], float)


def make_captions(pairs):
    texts = [text for text, _ in pairs]
    rows = np.array([row for _, row in pairs])
    return Captions(texts, rows, np.unique(texts, return_inverse=True)[1], 0)


def test_class_vectors_are_means_of_their_prompts():
    prompts = [["x", "xy"], ["y"], ["z"]]
    labels_b = np.array([0, -1, 1])
    row = scores.classify(VIDEO_BD, INDEX_B, labels_b, embed, prompts, "shape", make_row)
    assert (row.task, row.metric, row.n, row.value) == ("shape", "top1", 2, 0.5)
    assert row.details == {"temperature": 1.0, "classes": 3}
    assert row.scores.index_b.tolist() == [4, 7] and row.scores.score_b.tolist() == [1, 0]
    np.testing.assert_allclose(row.standard_error, np.sqrt(0.25 / 2))


def test_retrieval_with_several_captions_of_a_video():
    # Video 4 (x) has a good and a bad caption, video 1 (y) a wrong one, video 7 none.
    captions = make_captions([("x", 4), ("yx", 4), ("x", 2), ("xy", 1)])
    rows = scores.retrieve(VIDEO_BD, INDEX_B, embed, captions, make_row)
    found = {(row.task, row.metric): row for row in rows}
    row = found["text to video", "recall_at_1"]
    # Caption x retrieves video 4, which is correct. Captions yx and xy retrieve the wrong video.
    np.testing.assert_allclose(row.value, 1 / 3)
    assert row.n == 2 and row.scores.index_b.tolist() == [4, 1]
    assert row.scores.score_b.tolist() == [0.5, 0.0] and row.scores.weight_b.tolist() == [2, 1]
    assert found["text to video", "recall_at_5"].value == 1
    assert found["text to video", "median_rank"].value == 2
    row = found["video to text", "recall_at_1"]
    # Video 4 retrieves x. Video 1 retrieves yx (0.8) instead of its own caption (0.6).
    assert row.value == 0.5 and row.scores.score_b.tolist() == [1, 0]
    np.testing.assert_allclose(row.details["chance"], (2 / 3 + 1 / 3) / 2)
    np.testing.assert_allclose(found["text to video", "recall_at_1"].details["chance"], 1 / 2)


def test_equal_captions_of_two_videos_count_as_true_for_both():
    captions = make_captions([("x", 4), ("x", 1), ("z", 7)])
    rows = scores.retrieve(VIDEO_BD, INDEX_B, embed, captions, make_row)
    assert rows[0].metric == "recall_at_1" and rows[0].value == 1


def test_multiple_choice_with_different_numbers_of_candidates():
    candidates = [["x", "y"], ["z", "x", "xy"], ["x", "z"]]
    choices = Choices(np.array([4, 1, 2]), candidates, np.array([0, 2, 0]), 0)
    row = scores.choose(VIDEO_BD, INDEX_B, embed, choices, "motion", make_row)
    assert (row.task, row.value, row.n) == ("motion choices", 1.0, 2)
    np.testing.assert_allclose(row.details["chance"], (1 / 2 + 1 / 3) / 2)
    # A tie counts against the model.
    choices = choices._replace(answer_b=np.array([0, 1, 0]))
    assert scores.choose(VIDEO_BD, INDEX_B, embed, choices, "choices", make_row).value == 0.5


def test_without_readable_videos_an_error_says_so():
    captions = make_captions([("x", 2)])
    with pytest.raises(UserError, match="no readable held-out video has a caption"):
        scores.retrieve(VIDEO_BD, INDEX_B, embed, captions, make_row)
    choices = Choices(np.array([2]), [["x", "y"]], np.array([0]), 0)
    with pytest.raises(UserError, match="no readable held-out video has multiple choices"):
        scores.choose(VIDEO_BD, INDEX_B, embed, choices, "choices", make_row)
    with pytest.raises(UserError, match="label_shape has no labeled video"):
        labels_b = np.full(3, -1)
        scores.classify(VIDEO_BD, INDEX_B, labels_b, embed, [["x"], ["y"]], "shape", make_row)
