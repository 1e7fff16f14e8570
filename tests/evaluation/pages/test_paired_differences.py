"""The time for a page is limited, whatever the scores of the compared results are."""

import numpy as np
import pytest

from invnext_jax.evaluation import video_scores
from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages import (
    class_differences,
    paired_differences,
    row_options,
    video_labels,
)
from invnext_jax.evaluation.pages.paired_differences import Evaluation
from invnext_jax.evaluation.pages.video_labels import VideoLabels
from invnext_jax.evaluation.video_scores import VideoScores

VIDEOS = 20
ROW = {"scores": {"file": "scores.npz", "row": 0}, "evaluator": "knn", "task": "color"}


@pytest.fixture
def evaluations(tmp_path):
    """Two evaluations; the second one is right for videos that the first one has wrong."""
    found = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        score_b = (np.arange(VIDEOS) < VIDEOS * 0.8) == (name == "second")
        scores = video_scores.VideoScores(np.arange(VIDEOS), score_b.astype(np.float32))
        video_scores.write(folder / "scores.npz", [scores])
        found.append(Evaluation(name, folder, {"rows": [ROW], "run": {"config": {}}}))
    return found


def read_pair(evaluations):
    return paired_differences.read_pair(*((evaluation, ROW) for evaluation in evaluations))


def test_no_scores_are_read_beyond_the_limit(evaluations, monkeypatch, caplog):
    monkeypatch.setattr(paired_differences, "MAX_READ", 2 * VIDEOS)
    assert [read_pair(evaluations) is None for _ in range(5)] == [False, False, False, True, True]
    assert sum("too many scores" in text for text in caplog.messages) == 2  # one per evaluation


@pytest.mark.parametrize(("videos", "has_interval"), [(5, False), (6, True)])
def test_a_difference_of_few_videos_has_no_interval(videos, has_interval, evaluations):
    first, second = read_pair(evaluations)
    first = VideoScores(*(x if x is None else x[:videos] for x in first))
    interval = paired_differences.find_interval((first, second))
    assert (interval is not None) == has_interval


def test_many_videos_are_resampled_less_often(evaluations, monkeypatch):
    pair, numbers = read_pair(evaluations), []

    def paired_difference(*arguments, replicates, **options):
        numbers.append(replicates)
        raise ValueError

    monkeypatch.setattr(paired_differences, "paired_difference", paired_difference)
    for limit in (paired_differences.MAX_RESAMPLED, 500 * VIDEOS, VIDEOS):
        monkeypatch.setattr(paired_differences, "MAX_RESAMPLED", limit)
        assert paired_differences.find_interval(pair) is None
    assert numbers == [2000, 500, 100]


@pytest.mark.parametrize(("limit", "has_table"), [(2, True), (1, False)])
def test_too_many_classes_are_not_compared(limit, has_table, evaluations, monkeypatch):
    labels = VideoLabels(np.arange(VIDEOS) % 2, {})
    monkeypatch.setattr(video_labels, "read_labels", lambda *_: {"color": labels})
    monkeypatch.setattr(paired_differences, "MAX_COMPARED", limit)
    pairs = [tuple((evaluation, {"color": ROW}) for evaluation in evaluations)]
    table = class_differences.compare_classes(pairs, "color", find_format("top1"))
    assert (table is not None) == has_table


def test_unknown_evaluators_share_their_options():
    rows = [{**ROW, "evaluator": name} for name in ("knn", "a", "b")]
    results = {"rows": rows, "run": {"config": {"seed": 1, "knn": {"neighbors": 5}}}}
    found = row_options.find_all_options(results)
    assert found["a"] is found["b"]
    assert found == {
        row["evaluator"]: row_options.find_options(results, row["evaluator"]) for row in rows
    }
    assert found["a"] != found["knn"]


def test_classes_of_few_videos_are_not_resampled(evaluations, monkeypatch):
    """Classes have 14, 5 and 1 scored videos; the manifest has other videos without scores."""
    labels = VideoLabels(np.array([0] * 14 + [1] * 5 + [2] + [3] * 50), {})
    monkeypatch.setattr(video_labels, "read_labels", lambda *_: {"color": labels})
    sizes, resample = [], paired_differences.paired_difference

    def paired_difference(values, *arguments, **options):
        sizes.append(len(values[0]))
        return resample(values, *arguments, **options)

    monkeypatch.setattr(paired_differences, "paired_difference", paired_difference)
    pairs = [tuple((evaluation, {"color": ROW}) for evaluation in evaluations)]
    table = class_differences.compare_classes(pairs, "color", find_format("top1"))
    assert sizes == [14]
    assert [(row["name"], row["n"]) for row in table["rows"]] == [("0", 14)]
