"""Learning curves of a sweep: each metric of each training, with a line for each arm."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.evaluation.pages import charts
from invnext_jax.monitoring import metrics_file
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedArm, join_names
from invnext_jax.sweeps.step_config import Kind

MAX_CHARTS = 500  # of a page
_SKIPPED = ("Speed", "Waiting for data", "Learning rate")  # titles of charts of a single run

Points = list[tuple[int, float]]
Records = list[dict[str, Any]]


def make_curves(sweep: ExpandedSweep, group: str, limit: int = MAX_CHARTS) -> list[dict[str, Any]]:
    """Draws the metrics of the trainings of a group of arms.

    The line of an arm is the mean over its seeds, at the steps that all of them have logged. Arms
    that share their runs share a line. A kind of metric, such as the loss terms of several masks,
    has at most `charts.MAX_LINES` charts.

    Args:
      sweep: the arms and jobs.
      group: the group.
      limit: maximum number of charts.

    Returns:
      A list of dicts with `title`, `caption`, `svg` and `legend`, which lists (name, color, dash
      style, last value).
    """
    return list(itertools.islice(_draw_charts(sweep, group), limit))


def _draw_charts(sweep: ExpandedSweep, group: str) -> Iterator[dict[str, Any]]:
    arms = sweep.groups.get(group, [])
    for step in dict.fromkeys(step for arm in arms for step in arm.jobs):
        lines = _find_lines(sweep, arms, step)
        for spec in charts.CHARTS:
            if spec.title not in _SKIPPED:
                yield from _draw_metrics(step, spec, lines, f"{group} {step}")


def _find_lines(
    sweep: ExpandedSweep, arms: Sequence[PlannedArm], step: str
) -> dict[str, list[Records]]:
    """Returns the records of each seed of each line, by the names of the arms of the line."""
    jobs: dict[str, dict[str, None]] = {}
    for arm in arms:
        name = arm.jobs.get(step, "")
        if name and sweep.jobs[name].kind is Kind.TRAIN:
            jobs.setdefault(arm.name, {})[name] = None
    names: dict[tuple[str, ...], list[str]] = {}
    for arm, used in jobs.items():
        names.setdefault(tuple(used), []).append(arm)
    return {
        join_names(shared): [
            metrics_file.read_numbers(sweep.jobs[name].job.workdir) for name in used
        ]
        for used, shared in names.items()
    }


def _draw_metrics(
    step: str, spec: charts.ChartSpec, lines: Mapping[str, list[Records]], salt: str
) -> Iterator[dict[str, Any]]:
    records = [record for seeds in lines.values() for seed in seeds for record in seed]
    names = sorted({n for record in records for n in record if re.fullmatch(spec.pattern, n)})
    left_out = f" Only {charts.MAX_LINES} of {len(names)} metrics are shown."
    caption = spec.caption + left_out * (len(names) > charts.MAX_LINES)
    for name in names[: charts.MAX_LINES]:
        series = {  # an arm has the same style in all charts of a step
            (position, arm): points
            for position, (arm, seeds) in enumerate(lines.items())
            if (points := _average([_points(seed, name) for seed in seeds]))
        }
        if not series:
            continue
        legend = []
        for position, (arm, seeds) in enumerate(lines.items()):
            if text := _describe_last(seeds, name, series.get((position, arm))):
                legend.append((arm, *charts.line_style(position), text))
        positions = [position for position, _ in series]
        title = spec.title if len(names) == 1 else f"{spec.title}: {name.rpartition('/')[2]}"
        svg = charts.draw_lines(list(series.values()), spec.log, f"{salt} {name}", positions)
        yield {"title": f"{step}, {title}", "caption": caption, "svg": svg, "legend": legend}


def _describe_last(seeds: Sequence[Records], name: str, points: Points | None) -> str:
    """Returns the last value of a line, and whether a seed has a value that is not finite."""
    last = charts.format_value(points[-1][1]) if points else ""
    return ", then ".join(filter(None, (last, "not finite" * _is_non_finite(seeds, name))))


def _is_non_finite(seeds: Sequence[Records], name: str) -> bool:
    """Returns whether the last value of a metric is not finite in one of the seeds."""
    values = [[record[name] for record in seed if name in record] for seed in seeds]
    return any(of_seed and of_seed[-1] is None for of_seed in values)


def _points(records: Records, name: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in records if r.get(name) is not None}


def _average(seeds: Sequence[Mapping[int, float]]) -> Points:
    """Returns the mean over the seeds at the steps that all of them have logged."""
    started = [points for points in seeds if points]
    if not started:
        return []
    steps = sorted(set.intersection(*(set(points) for points in started)))
    return [(step, float(np.mean([points[step] for points in started]))) for step in steps]
