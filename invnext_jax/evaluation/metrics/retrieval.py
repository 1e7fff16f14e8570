"""Retrieval metrics: ranks, R@k, median rank and multiple choice.

Ties are resolved against the model: a wrong candidate is ranked before a correct one with the same
score, up to float32 rounding. Constant embeddings therefore get the worst ranks.

Shape key: q queries, c candidates, b videos, j captions.
"""

from typing import NamedTuple

import numpy as np

CUTOFFS = (1, 5, 10)
TIE = 1e-6  # difference of scores, which are cosines; products of equal vectors differ by rounding


class RetrievalScores(NamedTuple):
    """Retrieval metrics of one direction.

    Attributes:
      recall: For each k in `CUTOFFS`, the fraction of queries whose rank is at most k, in [0, 1].
      median_rank: Median rank; 1 is the best.
      rank_q: Rank of the first correct candidate of each query, from 1.
    """

    recall: dict[int, float]
    median_rank: float
    rank_q: np.ndarray


def rank_candidates(scores_qc: np.ndarray, is_true_qc: np.ndarray) -> np.ndarray:
    """Returns the rank of the best correct candidate of each query, int64 [q], from 1.

    Other correct candidates of the same query do not count as errors. Without a correct candidate,
    or if its score is NaN, the rank is c + 1.

    Args:
      scores_qc: Similarity of queries and candidates.
      is_true_qc: Which candidates are correct, bool.
    """
    scores_qc = np.where(np.isnan(scores_qc), -np.inf, scores_qc)
    best_q = np.where(is_true_qc, scores_qc, -np.inf).max(axis=1)
    ahead_q = ((scores_qc >= best_q[:, None] - TIE) & ~is_true_qc).sum(axis=1)
    return np.where(best_q > -np.inf, ahead_q, scores_qc.shape[1]) + 1


def score_ranks(rank_q: np.ndarray) -> RetrievalScores:
    """Summarizes the ranks of the queries."""
    recall = {k: float(np.mean(rank_q <= k)) for k in CUTOFFS}
    return RetrievalScores(recall, float(np.median(rank_q)), rank_q)


def score_retrieval(
    scores_jb: np.ndarray, video_j: np.ndarray, same_j: np.ndarray | None = None
) -> dict[str, RetrievalScores]:
    """Computes the metrics of text-to-video and video-to-text retrieval.

    A video may have several captions. For text to video, each caption is a query. For video to
    text, each video with a caption is a query, and the rank is that of its best caption.

    Args:
      scores_jb: Similarity of captions and videos.
      video_j: Column of the video that each caption describes.
      same_j: Group of each caption, int. Captions of a group have the same text and describe all
          videos of the group. None: all texts differ.

    Returns:
      A dict with "text_to_video" and "video_to_text".
    """
    is_true_jb = true_pairs(scores_jb.shape[1], video_j, same_j)
    described_b = is_true_jb.any(axis=0)
    return {
        "text_to_video": score_ranks(rank_candidates(scores_jb, is_true_jb)),
        "video_to_text": score_ranks(
            rank_candidates(scores_jb.T[described_b], is_true_jb.T[described_b])
        ),
    }


def true_pairs(videos: int, video_j: np.ndarray, same_j: np.ndarray | None = None) -> np.ndarray:
    """Returns whether each caption describes each of `videos` videos, bool [j b].

    See `score_retrieval` for the other arguments.
    """
    same_j = np.arange(len(video_j)) if same_j is None else same_j
    _, group_j = np.unique(same_j, return_inverse=True)
    by_group_gb = np.zeros((group_j.max() + 1, videos), bool)
    by_group_gb[group_j, np.asarray(video_j)] = True
    return by_group_gb[group_j]


def chance_of_recall(is_true_qc: np.ndarray, k: int) -> float:
    """Computes the expected R@k of a random order of the candidates, averaged over queries.

    A query with m correct candidates out of n fails if the first k candidates are all wrong. This
    has the probability C(n - m, k) / C(n, k).
    """
    n = is_true_qc.shape[1]
    wrong_q = n - is_true_qc.sum(axis=1)
    steps = np.arange(min(k, n))
    fails_q = np.prod(np.clip(wrong_q[:, None] - steps, 0, None) / (n - steps)[None], axis=1)
    return float(np.mean(1 - fails_q))


def choose(scores_bc: np.ndarray, answer_b: np.ndarray) -> np.ndarray:
    """Returns whether the correct candidate of each video has the highest score, bool [b].

    Args:
      scores_bc: Similarity of each video and its own candidates; -inf for missing candidates.
      answer_b: Column of the correct candidate.
    """
    is_true_bc = np.arange(scores_bc.shape[1])[None] == np.asarray(answer_b)[:, None]
    return rank_candidates(scores_bc, is_true_bc) == 1
