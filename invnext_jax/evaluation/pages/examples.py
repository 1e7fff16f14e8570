"""Videos that show how encoders differ: those that only one gets right.

Shape key: b videos.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages import (
    clip_strips,
    overview,
    paired_differences,
    row_names,
    video_labels,
)
from invnext_jax.evaluation.pages.paired_differences import Evaluation, Protocol, ScorePair
from invnext_jax.evaluation.pages.video_labels import VideoLabels

VIDEOS = 3  # videos of a task that one encoder gets right and another one wrong
MAX_STRIPS = 200  # strips of a page; a strip has about 5 kB


@dataclasses.dataclass(frozen=True)
class _Example:
    """A held-out video on which two encoders differ.

    Attributes:
      row: number of the video.
      scores: score of the first and of the other encoder.
      predicted: predicted classes of both; None if the evaluator predicts no classes.
    """

    row: int
    scores: tuple[float, float]
    predicted: tuple[int, int] | None


def make_examples(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Returns the videos with the largest differences from the first evaluation, for each task.

    Each task is represented by the protocol with the best value.

    Returns:
      One dict for each other evaluation and task: `title`, `task`, `protocol`, `names` of both
      encoders, and `groups`, each with a `title` and `videos`. A video has `uri`, `label` and two
      `answers` with `text` and `is_right` (None if answers are not right or wrong).
    """
    sections, left = [], MAX_STRIPS
    for task, protocol in overview.choose_by_task(evaluations):
        for first, other in paired_differences.find_pairs(evaluations, protocol):
            if task not in first[1] or task not in other[1] or left < 2 * VIDEOS:
                continue
            pair = paired_differences.read_pair(
                (first[0], first[1][task]), (other[0], other[1][task])
            )
            if pair is None:
                continue
            names = (first[0].title, other[0].title)
            section = _make_section(first[0], names, pair, task, protocol)
            if section is not None:
                left -= sum(len(group["videos"]) for group in section["groups"])
                sections.append(section)
    return sections


def _make_section(first: Evaluation, names, pair: ScorePair, task: str, protocol: Protocol):
    form = find_format(protocol.metric)
    groups = find_examples(pair, form.higher_is_better)
    rows = [example.row for group in groups for example in group]
    row = first.find_rows(protocol)[task]
    strips = clip_strips.read_strips(first.results, "val", rows, row)
    if not strips:
        return None
    labels = video_labels.read_labels(first.results, "val", [task], row).get(task)
    is_share = all(set(np.unique(scores.score_b)) <= {0.0, 1.0} for scores in pair)
    word = "is right" if is_share else "is better"
    return {
        "title": names[1],
        "task": task,
        "protocol": describe_protocol(protocol),
        "names": names,
        "groups": [
            {
                "title": f"{'Only ' if is_share else ''}{name} {word}",
                "videos": [
                    _describe_example(example, strips[example.row], labels, form, is_share)
                    for example in group
                    if example.row in strips
                ],
            }
            for name, group in zip(names, groups, strict=True)
        ],
    }


def find_examples(pair: ScorePair, higher_is_better: bool) -> tuple[list[_Example], list[_Example]]:
    """Returns the videos on which the first and on which the second encoder is better.

    Each list has at most `VIDEOS` videos, with the largest differences first. Of equal differences,
    random ones are chosen.
    """
    index_b, *places = np.intersect1d(
        pair[0].index_b, pair[1].index_b, assume_unique=True, return_indices=True
    )
    scores = [part.score_b[place_b] for part, place_b in zip(pair, places, strict=True)]
    has_classes = all(part.predicted_b is not None for part in pair)
    found = []
    for sign in (1, -1) if higher_is_better else (-1, 1):
        gain_b = sign * np.nan_to_num(np.float64(scores[0]) - scores[1])
        order_b = np.random.default_rng(0).permutation(len(index_b))
        order_b = order_b[np.argsort(-gain_b[order_b], kind="stable")]
        found.append(
            [
                _Example(
                    int(index_b[b]),
                    (float(scores[0][b]), float(scores[1][b])),
                    tuple(int(p.predicted_b[at[b]]) for p, at in zip(pair, places, strict=True))
                    if has_classes
                    else None,
                )
                for b in order_b[:VIDEOS]
                if gain_b[b] > 0
            ]
        )
    return found[0], found[1]


def _describe_example(example: _Example, uri: str, labels: VideoLabels | None, form, is_share):
    label = ""
    if labels is not None and example.row < len(labels.labels_b):
        label = labels.name_class(int(labels.labels_b[example.row]))
    answers = []
    for number, score in enumerate(example.scores):
        text = ("right" if score else "wrong") if is_share else form.write(score)
        if example.predicted is not None and labels is not None:
            name = labels.name_class(example.predicted[number])
            # Of several classes that count as predicted, such as five, only the first is stored.
            text = name if (name == label) == bool(score) else f"{text}; first: {name}"
        answers.append({"text": text, "is_right": bool(score) if is_share else None})
    return {"uri": uri, "label": label, "answers": answers}


def describe_protocol(protocol: Protocol) -> str:
    """Returns a protocol in words: "Linear probe, frame means"."""
    parts = (
        row_names.in_words(protocol.evaluator),
        row_names.describe_input(protocol.input),
    )
    text = ", ".join(filter(None, parts))
    return text[:1].upper() + text[1:]
