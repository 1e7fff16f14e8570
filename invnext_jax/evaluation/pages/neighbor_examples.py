"""Nearest training videos of some held-out videos, for each encoder of a comparison.

Shape key: b videos, k neighbors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.evaluation import nearest_neighbors, results_file
from invnext_jax.evaluation.nearest_neighbors import NearestVideos
from invnext_jax.evaluation.pages import clip_strips, paired_differences, video_labels
from invnext_jax.evaluation.pages.paired_differences import Evaluation
from invnext_jax.evaluation.pages.video_labels import VideoLabels

QUERIES, NEIGHBORS = 5, 3  # held-out videos of a page, and neighbors of each for each encoder
MAX_STRIPS = 200  # strips of neighbors of a page


def make_neighbors(evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Returns the nearest training videos of some held-out videos for each encoder.

    Returns:
      `tasks`; `agreement`, which lists (title of the encoder, percent of the nearest videos that
      have the class of the held-out video, by task); and `videos`, each with `uri`, `label` and
      `encoders`, which have a `title` and `neighbors` with `uri`, `words` (class, whether it is
      that of the held-out video) and `similarity`. None if fewer than two evaluations have
      neighbors of the same videos.
    """
    found = [(e, n) for e in evaluations if (n := read_nearest(e)) is not None]
    found = [part for part in found if paired_differences.same_videos(found[0][0], part[0])]
    queries = _choose_queries([nearest for _, nearest in found])
    if len(found) < 2 or not queries:
        return None
    results = found[0][0].results
    val = video_labels.read_labels(results, "val", results.get("tasks", []))
    strips = clip_strips.read_strips(results, "val", queries)
    queries = [row for row in queries if row in strips]
    count = max(1, min(NEIGHBORS, MAX_STRIPS // (QUERIES * len(found))))
    videos = [
        {"uri": strips[row], "label": _join_names(val, row), "encoders": []} for row in queries
    ]
    agreement = []
    for evaluation, nearest in found:
        train = video_labels.read_labels(evaluation.results, "train", list(val))
        agreement.append((evaluation.title, _measure_agreement(val, train, nearest)))
        described = _describe_neighbors(evaluation, nearest, queries, count, val, train)
        for video, neighbors in zip(videos, described, strict=True):
            video["encoders"].append({"title": evaluation.title, "neighbors": neighbors})
    return {"tasks": list(val), "agreement": agreement, "videos": videos} if videos else None


def read_nearest(evaluation: Evaluation) -> NearestVideos | None:
    """Returns the stored neighbors of an evaluation; None if there are none."""
    file = evaluation.results.get("neighbors")
    path = results_file.find_file(evaluation.folder, file) if file else None
    return nearest_neighbors.read_nearest_videos(path) if path else None


def _choose_queries(found: Sequence[NearestVideos]) -> list[int]:
    """Returns evenly spaced held-out videos that all encoders have."""
    shared = set.intersection(*(set(part.index_b.tolist()) for part in found)) if found else set()
    rows = sorted(shared)
    places = np.linspace(0, len(rows) - 1, QUERIES + 2).round().astype(int)[1:-1]
    return list(dict.fromkeys(rows[place] for place in places)) if rows else []


def _describe_neighbors(evaluation, nearest: NearestVideos, queries, count: int, val, train):
    """Returns the neighbors of each query; see `make_neighbors`."""
    place = {int(row): b for b, row in enumerate(nearest.index_b)}
    used = [place[row] for row in queries]
    rows_bk = nearest.neighbor_bk[used, :count]
    strips = clip_strips.read_strips(evaluation.results, "train", rows_bk.ravel())
    return [
        [
            {
                "uri": strips[int(row)],
                "words": _compare_names(val, train, query, int(row)),
                "similarity": f"{similarity:.3f}",
            }
            for row, similarity in zip(rows_k, similarity_k, strict=False)
            if int(row) in strips
        ]
        for query, rows_k, similarity_k in zip(
            queries, rows_bk, nearest.similarity_bk[used], strict=True
        )
    ]


def _join_names(labels: Mapping[str, VideoLabels], row: int) -> str:
    names = [part.name_class(int(part.labels_b[row])) for part in labels.values()]
    return ", ".join(names)


def _compare_names(val, train, query: int, row: int) -> list[tuple[str, bool]]:
    """Returns the class of a training video, and whether a held-out video has it, for each task."""
    return [
        (
            train[task].name_class(int(train[task].labels_b[row])),
            bool(train[task].labels_b[row] == part.labels_b[query]),
        )
        for task, part in val.items()
        if task in train
    ]


def _measure_agreement(val, train, nearest: NearestVideos) -> dict[str, str]:
    """Returns the percentage of first neighbors with the class of the video, by task."""
    found = {}
    for task in (task for task in val if task in train):
        first_b = nearest.neighbor_bk[:, 0]
        counts = len(val[task].labels_b), len(train[task].labels_b)
        if (nearest.index_b >= counts[0]).any() or (first_b >= counts[1]).any():
            continue  # the neighbors are those of other manifests
        expected_b = val[task].labels_b[nearest.index_b]
        labels_b = train[task].labels_b[first_b]
        if (expected_b >= 0).any():
            found[task] = f"{100 * np.mean((labels_b == expected_b)[expected_b >= 0]):.1f}"
    return found
