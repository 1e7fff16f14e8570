"""Paired differences of evaluations for each class of the held-out videos.

Shape key: b videos.
"""

from typing import Any

import numpy as np

from invnext_jax.evaluation import video_scores
from invnext_jax.evaluation.metrics.formats import MetricFormat
from invnext_jax.evaluation.pages import paired_differences, video_labels
from invnext_jax.evaluation.pages.paired_differences import LEAST_VIDEOS

MAX_CLASSES = 20  # maximum number of rows of a table of classes


def compare_classes(pairs, task: str, form: MetricFormat) -> dict[str, Any] | None:
    """Compares evaluations for each class, and returns the classes with the largest differences.

    Args:
      pairs: see `paired_differences.make_differences`.
      task: a task with a label column in the held-out manifest.
      form: format of the metric.

    Returns:
      `task` and `rows`, at most `MAX_CLASSES`; None if the manifest cannot be read, or has no
      labels for the task.
    """
    pairs = [
        ((first, a[task]), (other, b[task]))
        for (first, a), (other, b) in pairs
        if task in a and task in b
    ]
    if not pairs:
        return None
    first, row = pairs[0][0]
    labels = video_labels.read_labels(first.results, "val", [task], row).get(task)
    if labels is None:
        return None
    rows = []
    for first, other in pairs:
        scores = paired_differences.read_pair(first, other)
        places = [_divide(part, labels.labels_b) for part in scores or ()]
        if not places or not other[0].add_classes(len(places[0])):
            continue
        for label in (n for n in places[0] if n in places[1]):
            parts = (_select(s, place[label]) for s, place in zip(scores, places, strict=True))
            interval = paired_differences.find_interval(tuple(parts))
            if interval and interval.value:
                name = labels.name_class(label)
                written = paired_differences.write_interval(
                    interval, form, paired_differences.same_options(first, other)
                )
                written |= {"title": other[0].title, "name": name}
                rows.append((abs(interval.value), written))
    rows.sort(key=lambda row: -row[0])
    return {"task": task, "rows": [row for _, row in rows[:MAX_CLASSES]]} if rows else None


def _divide(scores: video_scores.VideoScores, labels_b: np.ndarray) -> dict[int, np.ndarray]:
    """Returns the positions of the scores of each class with at least `LEAST_VIDEOS` of them."""
    inside_b = np.flatnonzero(scores.index_b < len(labels_b))
    label_b = labels_b[scores.index_b[inside_b]]
    order_b = np.argsort(label_b, kind="stable")
    found, starts = np.unique(label_b[order_b], return_index=True)
    parts = zip(found.tolist(), np.split(inside_b[order_b], starts[1:]), strict=False)
    return {n: part_b for n, part_b in parts if n >= 0 and len(part_b) >= LEAST_VIDEOS}


def _select(scores: video_scores.VideoScores, chosen_b: np.ndarray) -> video_scores.VideoScores:
    return video_scores.VideoScores(*(x if x is None else x[chosen_b] for x in scores))
