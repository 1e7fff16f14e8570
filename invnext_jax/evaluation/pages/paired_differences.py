"""Paired differences of evaluations, over all held-out videos.

All encoders of a comparison are measured on the same held-out videos. Intervals are bootstrapped
over videos, with the same videos for both encoders.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from invnext_jax.evaluation import results_file, video_scores
from invnext_jax.evaluation.metrics import intervals
from invnext_jax.evaluation.metrics.formats import MetricFormat
from invnext_jax.evaluation.metrics.intervals import Interval, paired_difference
from invnext_jax.evaluation.pages import row_options

# If the differences of at least 6 videos have the same sign by chance, p = 0.03 (sign test).
LEAST_VIDEOS = 6
OTHER_OPTIONS = "other options"  # verdict if the options of two rows differ
# Limits of the time for a page, because results may come from an untrusted source.
MAX_READ = 2**24  # scores that are read of an evaluation
MAX_RESAMPLED = 2**27  # scores that are drawn for an interval; at least 100 resamples are drawn
MAX_COMPARED = 2**16  # intervals of classes of an evaluation


class Protocol(NamedTuple):
    """How values were measured. A page has one table for each protocol.

    Attributes:
      metric: see `Row`.
      evaluator: see `Row`.
      input: see `Row`.
    """

    metric: str
    evaluator: str
    input: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One of the compared evaluations.

    Attributes:
      title: unique name in the tables.
      folder: workdir of the evaluation.
      results: content of its results.json.
    """

    title: str
    folder: Path
    results: Mapping[str, Any]

    def find_rows(self, protocol: Protocol, name: str = "encoder") -> dict[str, dict[str, Any]]:
        """Returns the rows of an encoder or baseline by task."""
        return self._rows.get(protocol, {}).get(name, {})

    def find_names(self, protocol: Protocol) -> list[str]:
        """Returns the names of the encoders and baselines that have rows."""
        return list(self._rows.get(protocol, {}))

    @functools.cached_property
    def _rows(self) -> dict[Protocol, dict[str, dict[str, dict[str, Any]]]]:
        """The rows by protocol, name and task."""
        found: dict[Protocol, dict[str, dict[str, dict[str, Any]]]] = {}
        for row in self.results["rows"]:
            protocol = Protocol(row["metric"], row["evaluator"], row["input"])
            found.setdefault(protocol, {}).setdefault(row["name"], {})[row["task"]] = row
        return found

    def find_options(self, evaluator: str) -> dict[str, Any]:
        """Returns the options of the rows of an evaluator; see `row_options.find_options`."""
        return self._options[evaluator]

    @functools.cached_property
    def _options(self) -> dict[str, dict[str, Any]]:
        """The options of the rows by evaluator."""
        return row_options.find_all_options(self.results)

    def read_scores(self, row: Mapping[str, Any]) -> video_scores.VideoScores | None:
        """Returns the score of each video of a row; None if they were not stored.

        They are also None after `MAX_READ` scores were read, which is logged.
        """
        place = row.get("scores")
        path = results_file.find_file(self.folder, place["file"]) if place else None
        if path is None or self._read[0] > MAX_READ:
            return None
        scores = video_scores.read(path, place["row"])
        self._read[0] += 0 if scores is None else len(scores.index_b)
        if self._read[0] > MAX_READ:
            logging.warning(
                "the page has no further intervals of %s, because it has too many scores",
                self.folder,
            )
        return scores

    def add_classes(self, number: int) -> bool:
        """Counts intervals of classes; returns False if there are more than `MAX_COMPARED`."""
        self._classes[0] += number
        return self._classes[0] <= MAX_COMPARED

    @functools.cached_property
    def _classes(self) -> list[int]:
        """The number of intervals of classes."""
        return [0]

    @functools.cached_property
    def _read(self) -> list[int]:
        """The number of scores that were read."""
        return [0]


MeasuredRow = tuple[Evaluation, Mapping[str, Any]]  # an evaluation and one of its rows
ScorePair = tuple[video_scores.VideoScores, video_scores.VideoScores]


def same_videos(first: Evaluation, second: Evaluation, split: str = "val") -> bool:
    """Returns whether the videos of a split are the same; see `results_file.same_videos`."""
    return results_file.same_videos(first.results, second.results, split)


def same_rows(first: MeasuredRow, second: MeasuredRow) -> bool:
    """Returns whether two rows were measured on the same videos, captions and text towers.

    Hashes that only one of them has are not compared, because versions add hashes.
    """
    names = ("videos_key", "videos_digest", "texts_digest")
    keys = ([row.get(name) for name in names] for _, row in (first, second))
    return same_videos(first[0], second[0]) and results_file.hashes_agree(*keys)


def same_options(first: MeasuredRow, second: MeasuredRow) -> bool:
    """Returns whether two rows were measured with the same options of the evaluator.

    The clips may differ, because encoders are built for different clips.
    """
    evaluator = first[1]["evaluator"]
    options = (evaluation.find_options(evaluator) for evaluation, _ in (first, second))
    return not row_options.find_changes(*options)


def largest_group(rows: Sequence[MeasuredRow]) -> list[MeasuredRow]:
    """Returns the largest group of rows with the same videos and the same options."""
    groups = (
        [other for other in rows if same_rows(row, other) and same_options(row, other)]
        for row in rows
    )
    return max(groups, key=len, default=[])


def find_pairs(
    evaluations: Sequence[Evaluation], protocol: Protocol
) -> list[tuple[tuple[Evaluation, dict], tuple[Evaluation, dict]]]:
    """Pairs the first evaluation with the others that were measured on the same videos.

    Returns:
      (evaluation, its rows of the protocol by task) of the first evaluation and of another one.
    """
    first, *others = [(e, e.find_rows(protocol)) for e in evaluations]
    if not first[1]:
        return []
    return [(first, other) for other in others if other[1] and same_videos(first[0], other[0])]


def read_pair(first: MeasuredRow, second: MeasuredRow) -> ScorePair | None:
    """Returns the scores of the videos of two rows; None if they cannot be paired."""
    if not same_rows(first, second):
        return None
    scores = tuple(evaluation.read_scores(row) for evaluation, row in (first, second))
    return None if None in scores else scores


def find_interval(pair: ScorePair | None) -> Interval | None:
    """Returns the interval of second - first; None if too few videos have both scores.

    The least number of videos is `LEAST_VIDEOS`.

    If the scores have classes, the class mean is computed again in each replicate, as for the
    standard errors of the rows.

    Args:
      pair: scores of the first and the second encoder.
    """
    if pair is None:
        return None
    rows, values, weights, _, classes = zip(*pair, strict=True)
    classes = None if any(class_b is None for class_b in classes) else classes
    most = max(100, MAX_RESAMPLED // max(1, len(rows[0])))
    replicates = min(intervals.REPLICATES, most)
    try:
        interval = paired_difference(values, rows, weights, classes=classes, replicates=replicates)
    except ValueError:  # no video in common
        return None
    return None if math.isnan(interval.low) or interval.n < LEAST_VIDEOS else interval


def make_differences(pairs, tasks: Sequence[str], form: MetricFormat) -> list[dict]:
    """Compares evaluations with the first one.

    Args:
      pairs: the first evaluation and another one, each with its rows by task.
      tasks: tasks to compare.
      form: format of the metric.

    Returns:
      One dict for each other evaluation and task with paired scores: `title`, `task`, texts of the
      difference and of the ends of its 95 % interval, `verdict` ("better", "worse", "unclear" if
      the interval contains 0, or `OTHER_OPTIONS`), `n`, and the positions of the interval in a bar,
      in percent of its width.
    """
    found = []
    for (first, first_rows), (other, other_rows) in pairs:
        for task in (task for task in tasks if task in first_rows and task in other_rows):
            both = (first, first_rows[task]), (other, other_rows[task])
            interval = find_interval(read_pair(*both))
            if interval:
                found.append((other.title, task, same_options(*both), interval))
    limit = max((max(abs(i.low), abs(i.high), abs(i.value)) for *_, i in found), default=0) or 1
    return [
        {
            "title": title,
            "task": task,
            **write_interval(interval, form, comparable),
            "places": find_places(interval.value, interval.low, interval.high, limit),
        }
        for title, task, comparable, interval in found
    ]


def find_places(value: float, low: float, high: float, limit: float) -> list[float]:
    """Returns the positions of an interval in a bar from -limit to limit, in percent of its width.

    The positions are those of the lower end, the value and the upper end.
    """
    return [50 + 50 * number / limit for number in (low, value, high)]


def find_verdict(value: float, low: float, high: float, form: MetricFormat) -> str:
    """Returns "better" or "worse" for a difference; "unclear" if its interval contains 0."""
    if low <= 0 <= high:
        return "unclear"
    return "better" if (value > 0) == form.higher_is_better else "worse"


def write_interval(interval: Interval, form: MetricFormat, comparable: bool) -> dict[str, Any]:
    """Returns the difference, the interval and the verdict as text."""
    verdict = find_verdict(interval.value, interval.low, interval.high, form)
    verdict = verdict if comparable else OTHER_OPTIONS
    numbers = {"value": interval.value, "low": interval.low, "high": interval.high}
    texts = {name: form.write_difference(value) for name, value in numbers.items()}
    return {**texts, "verdict": verdict, "n": interval.n}
