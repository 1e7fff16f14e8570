"""Learning curves of runs of which several checkpoints were evaluated."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax.evaluation import results_file
from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages import charts
from invnext_jax.evaluation.pages.paired_differences import Evaluation, Protocol


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
        for part in parts:
            for task, row in part.find_rows(protocol).items():
                points = series.setdefault(task, {}).setdefault(name, [])
                points.append((part.results["step"], form.scale * row["value"]))
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


def find_runs(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Returns the evaluated checkpoints of each run by a unique name, in the order of their steps.

    They are those of `config.steps`, and the evaluations of one checkpoint each. Evaluations of
    other encoders, and runs with a single checkpoint, are left out.
    """
    runs: dict[str, dict[int, Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.results.get("step") is not None:
            parts = runs.setdefault(evaluation.results["checkpoint"], {})
            for part in _read_steps(evaluation) or [evaluation]:
                if part.results["step"] is not None:
                    parts.setdefault(part.results["step"], part)
    runs = {checkpoint: parts for checkpoint, parts in runs.items() if len(parts) > 1}
    names = [Path(checkpoint).name for checkpoint in runs]
    return {
        name if names.count(name) == 1 else checkpoint: [parts[step] for step in sorted(parts)]
        for name, (checkpoint, parts) in zip(names, runs.items(), strict=True)
    }


def _read_steps(evaluation: Evaluation) -> list[Evaluation]:
    """Reads the results of the single checkpoints of an evaluation with `config.steps`."""
    found = []
    for step in evaluation.results.get("steps", ()):
        folder = results_file.step_folder(evaluation.folder, step)
        if (folder / results_file.RESULTS).is_file():
            results = results_file.read_results(folder)
            found.append(Evaluation(f"{evaluation.title}, step {step}", folder, results))
    return found
