"""Rows of zero-shot classification, retrieval and multiple choice, from embeddings.

Shape key: b videos, j captions, k classes, c candidates, q queries, d width.
"""

from collections.abc import Callable, Sequence

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators.classification import find_labeled
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.metrics import intervals, retrieval
from invnext_jax.evaluation.nearest_neighbors import l2_normalize
from invnext_jax.evaluation.truth import baselines
from invnext_jax.evaluation.truth.captions import Captions, Choices
from invnext_jax.evaluation.video_scores import VideoScores

MAX_PAIRS = 2**29  # of captions and videos; their scores need about 10 GB
Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors [j d]


def classify(
    video_bd: np.ndarray,
    index_b: np.ndarray,
    labels_b: np.ndarray,
    embed: Embed,
    prompts: Sequence[Sequence[str]],
    task: str,
    make_row: Callable[..., Row],
) -> Row:
    """Classifies videos by the nearest class. The vector of a class is the mean over its prompts.

    Args:
      video_bd: unit vectors of the videos.
      index_b: rows of the videos in the manifest.
      labels_b: class ids, negative for none.
      embed: function texts -> unit vectors.
      prompts: prompts of each class.
      task: name of the task.
      make_row: function that makes a `Row` from its remaining fields.
    """
    flat = [prompt for group in prompts for prompt in group]
    bounds = np.cumsum([len(group) for group in prompts])[:-1]
    class_kd = l2_normalize(np.stack([part.mean(axis=0) for part in np.split(embed(flat), bounds)]))
    labeled_b = find_labeled(labels_b, task, SPLITS["val"])
    predicted_b = np.argmax(video_bd @ class_kd.T, axis=1)[labeled_b]
    correct_b = predicted_b == labels_b[labeled_b]
    scores = VideoScores(index_b[labeled_b], correct_b, predicted_b=predicted_b)
    return _share_row(scores, make_row, task=task, metric="top1", classes=len(prompts))


def check_pairs(captions: Captions) -> None:
    """Raises `UserError` if there are too many captions and videos for `retrieve`."""
    count, videos = len(captions.row_j), len(np.unique(captions.row_j))
    if count * videos > MAX_PAIRS:
        raise UserError(
            f"retrieval compares {count} captions with {videos} videos, more than {MAX_PAIRS} "
            "pairs: use fewer held-out videos or captions"
        )


def retrieve(
    video_bd: np.ndarray,
    index_b: np.ndarray,
    embed: Embed,
    captions: Captions,
    make_row: Callable[..., Row],
) -> list[Row]:
    """Retrieves videos by captions and captions by videos.

    Only videos with captions are candidates. The standard errors are over videos, because captions
    of the same video are not independent.

    Args:
      video_bd: see `classify`.
      index_b: see `classify`.
      embed: see `classify`.
      captions: the captions.
      make_row: see `classify`.
    """
    used_j = np.flatnonzero(np.isin(captions.row_j, index_b))
    if not len(used_j):
        raise UserError("no readable held-out video has a caption: check config.text.val_captions")
    check_pairs(captions)
    rows_j, group_j = captions.row_j[used_j], captions.group_j[used_j]
    described_b = np.isin(index_b, rows_j)
    video_bd, index_b = video_bd[described_b], index_b[described_b]
    order_b = np.argsort(index_b)
    video_j = order_b[np.searchsorted(index_b[order_b], rows_j)]
    scores_jb = embed([captions.texts[j] for j in used_j]) @ video_bd.T
    found = retrieval.score_retrieval(scores_jb, video_j, group_j)
    is_true_jb = retrieval.true_pairs(len(index_b), video_j, group_j)
    rows = []
    for task, video_q, true_qc in (
        ("text_to_video", video_j, is_true_jb),
        ("video_to_text", np.arange(len(index_b)), is_true_jb.T),
    ):
        for k in retrieval.CUTOFFS:
            scores = _per_video(found[task].rank_q <= k, video_q, index_b)
            interval = intervals.bootstrap_mean(scores.score_b, scores.weight_b)
            row = make_row(
                task=task.replace("_", " "),
                metric=f"recall_at_{k}",
                value=found[task].recall[k],
                standard_error=interval.standard_error,
                n=len(index_b),
                scores=scores,
            )
            rows.append(_add_details(row, chance=retrieval.chance_of_recall(true_qc, k)))
        rows.append(
            make_row(
                task=task.replace("_", " "),
                metric="median_rank",
                value=found[task].median_rank,
                standard_error=_median_error(found[task].rank_q, video_q, len(index_b)),
                n=len(index_b),
            )
        )
    return rows


def choose(
    video_bd: np.ndarray,
    index_b: np.ndarray,
    embed: Embed,
    choices: Choices,
    name: str,
    make_row: Callable[..., Row],
) -> Row:
    """Measures how often the true caption has the highest score among the candidates of a video.

    Args:
      video_bd: see `classify`.
      index_b: see `classify`.
      embed: see `classify`.
      choices: candidates of each video.
      name: name of the property in which the candidates differ.
      make_row: see `classify`.
    """
    place = {int(row): i for i, row in enumerate(index_b)}
    used = [i for i, row in enumerate(choices.row_b) if int(row) in place]
    if not used:
        raise UserError(
            "no readable held-out video has multiple choices: check config.text.choices"
        )
    texts = sorted({text for i in used for text in choices.candidates[i]})
    number = {text: i for i, text in enumerate(texts)}
    text_jd = embed(texts)
    counts = [len(choices.candidates[i]) for i in used]
    scores_bc = np.full((len(used), max(counts)), -np.inf)
    for b, i in enumerate(used):
        numbers = [number[text] for text in choices.candidates[i]]
        scores_bc[b, : counts[b]] = text_jd[numbers] @ video_bd[place[int(choices.row_b[i])]]
    correct_b = retrieval.choose(scores_bc, choices.answer_b[used])
    task = name if name == "choices" else f"{name} choices"
    scores = VideoScores(choices.row_b[used], correct_b)
    row = _share_row(scores, make_row, task=task, metric="top1", classes=max(counts))
    return _add_details(row, chance=baselines.chance_choice(counts))


def _share_row(scores: VideoScores, make_row, *, classes: int, **fields) -> Row:
    """Returns a row whose value is the fraction of correct videos."""
    share, videos = float(np.mean(scores.score_b)), len(scores.score_b)
    row = make_row(
        value=share,
        standard_error=intervals.binomial_standard_error(share, videos),
        n=videos,
        scores=scores,
        **fields,
    )
    return _add_details(row, classes=classes)


def _add_details(row: Row, **details) -> Row:
    fields = {**vars(row), "details": {**row.details, **details}}
    return Row(**fields)


def _per_video(found_q: np.ndarray, video_q: np.ndarray, index_b: np.ndarray) -> VideoScores:
    """Averages the scores of the queries of each video. The weights are the numbers of queries."""
    weight_b = np.bincount(video_q, minlength=len(index_b))
    score_b = np.bincount(video_q, weights=found_q, minlength=len(index_b)) / weight_b
    return VideoScores(index_b, score_b, weight_b)


def _median_error(rank_q: np.ndarray, video_q: np.ndarray, videos: int) -> float:
    """Returns the bootstrap standard error of the median rank over videos."""
    order_q = np.argsort(video_q, kind="stable")
    queries = np.split(order_q, np.searchsorted(video_q[order_q], np.arange(1, videos)))

    def median(rows_b):
        return float(np.median(rank_q[np.concatenate([queries[i] for i in rows_b])]))

    return intervals.bootstrap(median, videos, replicates=200).standard_error
