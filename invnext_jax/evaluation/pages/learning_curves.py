"""Learning curves of runs of which several checkpoints were evaluated."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file
from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages import charts, paired_differences, row_names, row_options
from invnext_jax.evaluation.pages.paired_differences import Evaluation, MeasuredRow, Protocol

MAX_COMPARED = 10**7  # maximum product of the numbers of rows and steps; about 10 minutes


def make_curves(
    runs: Mapping[str, Sequence[Evaluation]], protocol: Protocol
) -> list[dict[str, Any]]:
    """Plots the values of each task over the training steps of the runs; see `find_runs`.

    Returns:
      A list of dicts with `title`, `svg` and `legend`, which lists (name of the run, color, last
      value).
    """
    form, series = find_format(protocol.metric), {}
    for name, parts in runs.items():
        for task, (group, _) in _group_points(parts, protocol).items():
            points = {}
            for part, row in group:
                points.setdefault(part.results["step"], form.scale * row["value"])
            series.setdefault(task, {})[name] = list(points.items())
    curves = []
    for task, lines in series.items():
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        if lines:
            salt = f"{task} {protocol}"
            svg = charts.draw_lines(list(lines.values()), False, salt)
            colors = itertools.cycle(charts.COLORS)
            legend = [
                (name, color, charts.format_value(points[-1][1]))
                for (name, points), color in zip(lines.items(), colors, strict=False)
            ]
            curves.append({"title": task, "svg": svg, "legend": legend})
    return curves


def _group_points(
    parts: Sequence[Evaluation], protocol: Protocol
) -> dict[str, tuple[list[MeasuredRow], list[MeasuredRow]]]:
    """Returns for each task the largest group of comparable rows, and the other rows.

    Rows are comparable if they have the same videos, options and clips, if they are all of the
    parameters or all of their moving average, and if the runs had the same options.
    """
    found: dict[str, list[MeasuredRow]] = {}
    for part in parts:
        for task, row in part.find_rows(protocol).items():
            found.setdefault(task, []).append((part, row))
    pairs = {}
    for task, rows in found.items():
        groups = [[other for other in rows if _is_comparable(row, other)] for row in rows]
        largest = max(groups, key=lambda group: len({e.results["step"] for e, _ in group}))
        chosen = {id(evaluation) for evaluation, _ in largest}
        pairs[task] = largest, [row for row in rows if id(row[0]) not in chosen]
    return pairs


def _is_comparable(first: MeasuredRow, second: MeasuredRow) -> bool:
    return (
        _describe_clips(first[0]) == _describe_clips(second[0])
        and _is_same_run(first[0], second[0])
        and paired_differences.same_rows(first, second)
        and paired_differences.same_videos(first[0], second[0], "train")
        and paired_differences.same_options(first, second)
    )


def _is_same_run(first: Evaluation, second: Evaluation) -> bool:
    """Returns False if a folder had another run when the second evaluation was made."""
    hashes = {part.results.get(results_file.RUN_HASH) for part in (first, second)} - {None}
    return len(hashes) < 2  # results of older versions have none


def _describe_clips(evaluation: Evaluation) -> tuple[Any, Any]:
    """Returns the clips, and whether the moving average of the parameters was evaluated."""
    config = evaluation.results.get("run", {}).get("config", {})
    return row_options.find_clips(evaluation.results), config.get("ema")


def find_left_out(
    runs: Mapping[str, Sequence[Evaluation]], protocols: Iterable[Protocol]
) -> list[str]:
    """Returns sentences about checkpoints that are not points of a curve."""
    found: dict[str, dict[str, None]] = {}
    for protocol, (name, parts) in itertools.product(protocols, runs.items()):
        for _, others in _group_points(parts, protocol).values():
            for part, _ in others:
                text = f"The learning curves of {name} do not contain step {part.results['step']} "
                text += f"of {part.title}, because its run, videos, clips or options differ from "
                found.setdefault(f"{text}those of the other steps", {})[protocol.evaluator] = None
    return [
        f"{text} ({', '.join(map(row_names.in_words, evaluators))})."
        for text, evaluators in found.items()
    ]


def find_runs(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Returns the evaluated checkpoints of each run by a unique name, in the order of their steps.

    They are those of `config.steps`, and the evaluations of one checkpoint each, which may be
    evaluated several times with different options. Evaluations of other encoders, and runs with a
    single checkpoint, are left out.
    """
    runs: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.results.get("step") is not None:
            parts = _read_steps(evaluation) or [evaluation]
            runs.setdefault(evaluation.results["checkpoint"], []).extend(
                part for part in parts if part.results["step"] is not None
            )
    runs = {
        checkpoint: sorted(parts, key=lambda part: part.results["step"])
        for checkpoint, parts in runs.items()
        if len({part.results["step"] for part in parts}) > 1
    }
    names = [Path(checkpoint).name for checkpoint in runs]
    return {
        name if names.count(name) == 1 else checkpoint: parts
        for name, (checkpoint, parts) in zip(names, runs.items(), strict=True)
    }


def _read_steps(evaluation: Evaluation) -> list[Evaluation]:
    """Reads the results of the single checkpoints of an evaluation with `config.steps`.

    Raises:
      UserError: the results have too many bytes or rows. Each row is compared with those of all
        other steps.
    """
    found, size, rows = [], 0, 0
    for step in dict.fromkeys(evaluation.results.get("steps", ())):
        folder = results_file.step_folder(evaluation.folder, step)
        path = folder / results_file.RESULTS
        if not os.path.isfile(path):
            continue
        size += path.stat().st_size
        if size <= results_file.MAX_BYTES:
            found.append(Evaluation(evaluation.title, folder, results_file.read_results(folder)))
            rows += len(found[-1].results["rows"])
        if size > results_file.MAX_BYTES or rows * len(found) > MAX_COMPARED:
            raise UserError(
                f"{evaluation.folder / 'steps'} has too many results for a page: remove some of "
                "its folders"
            )
    return found
