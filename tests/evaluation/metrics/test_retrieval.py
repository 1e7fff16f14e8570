import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from invnext_jax.evaluation.metrics import retrieval


def test_recall_equals_top_k_accuracy_of_scikit_learn():
    scores = np.random.default_rng(0).normal(size=(60, 60)) + 1.5 * np.eye(60)
    found = retrieval.score_retrieval(scores, np.arange(60))
    for direction, matrix in (("text_to_video", scores), ("video_to_text", scores.T)):
        for k in (1, 5, 10):
            expected = reference.top_k_accuracy_score(np.arange(60), matrix, k=k)
            assert found[direction].recall[k] == pytest.approx(expected)


def test_ranks_equal_positions_after_sorting():
    rng = np.random.default_rng(1)
    scores, video = rng.normal(size=(40, 15)), rng.integers(15, size=40)
    found = retrieval.score_retrieval(scores, video)["text_to_video"]
    order = np.argsort(-scores, axis=1)
    ranks = [list(row).index(v) + 1 for row, v in zip(order, video, strict=True)]
    np.testing.assert_array_equal(found.rank_q, ranks)
    assert found.median_rank == np.median(ranks)


def test_best_of_several_captions_counts_for_a_video():
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4]])  # captions 0 and 1 describe video 0
    found = retrieval.score_retrieval(scores, np.array([0, 0, 1]))
    np.testing.assert_array_equal(found["text_to_video"].rank_q, [1, 2, 2])
    np.testing.assert_array_equal(found["video_to_text"].rank_q, [1, 1])


def test_captions_with_equal_text_describe_all_videos_of_the_group():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.0, 0.0, 1.0]])
    found = retrieval.score_retrieval(scores, np.arange(3), same_j=np.array([7, 7, 3]))
    np.testing.assert_array_equal(found["text_to_video"].rank_q, [1, 1, 1])
    alone = retrieval.score_retrieval(scores, np.arange(3))
    np.testing.assert_array_equal(alone["text_to_video"].rank_q, [3, 1, 1])


def test_videos_without_captions_are_no_queries():
    found = retrieval.score_retrieval(np.eye(3)[:2], np.array([0, 1]))
    assert len(found["video_to_text"].rank_q) == 2


def test_equal_scores_and_missing_scores_find_nothing():
    found = retrieval.score_retrieval(np.zeros((4, 4)), np.arange(4))
    assert found["text_to_video"].recall[1] == found["video_to_text"].recall[1] == 0
    ranks = retrieval.rank_candidates(np.full((1, 3), np.nan), np.eye(3, dtype=bool)[:1])
    np.testing.assert_array_equal(ranks, [4])


def test_scores_that_differ_by_rounding_are_ties():
    rounding = np.float32(1e-7) * np.eye(4, dtype=np.float32)
    found = retrieval.score_retrieval(np.float32(-0.3) + rounding, np.arange(4))
    np.testing.assert_array_equal(found["text_to_video"].rank_q, [4, 4, 4, 4])
    found = retrieval.score_retrieval(np.float32(-0.3) + 100 * rounding, np.arange(4))
    np.testing.assert_array_equal(found["text_to_video"].rank_q, [1, 1, 1, 1])


def test_equal_vectors_find_nothing():
    """The rounding of products of unit vectors does not depend on their size."""
    rng = np.random.default_rng(0)
    texts, video = rng.normal(size=(101, 384)), rng.normal(size=384)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    videos = np.repeat(video[None] / np.linalg.norm(video), 101, axis=0).astype(np.float32)
    scores = texts.astype(np.float32) @ videos.T
    found = retrieval.score_retrieval(scores, np.arange(101))
    np.testing.assert_array_equal(found["text_to_video"].rank_q, 101)


def test_multiple_choice():
    scores = np.array([[0.3, 0.2, -np.inf], [0.3, 0.2, 0.1], [0.2, 0.2, 0.1]])
    np.testing.assert_array_equal(retrieval.choose(scores, np.array([0, 1, 0])), [1, 0, 0])


@pytest.mark.parametrize("k", [1, 5, 10, 40])
def test_chance_of_recall_is_hypergeometric(k):
    rng = np.random.default_rng(0)
    is_true_qc = rng.random((6, 30)) < 0.1
    true_q = is_true_qc.sum(axis=1)
    fails_q = stats.hypergeom.pmf(0, 30, true_q, min(k, 30))
    np.testing.assert_allclose(retrieval.chance_of_recall(is_true_qc, k), np.mean(1 - fails_q))


def test_chance_of_recall_is_that_of_random_scores():
    rng = np.random.default_rng(1)
    is_true_qc = np.eye(20, dtype=bool)
    ranks = [retrieval.rank_candidates(rng.random((20, 20)), is_true_qc) for _ in range(500)]
    share = np.mean(np.concatenate(ranks) <= 5)
    assert abs(share - retrieval.chance_of_recall(is_true_qc, 5)) < 0.02
