"""Writes a web page that compares evaluations: tables, differences, learning curves and videos."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation import clip_settings, results_file
from invnext_jax.evaluation.metrics.formats import MetricFormat, find_format
from invnext_jax.evaluation.pages import (
    class_differences,
    clip_strips,
    data_notes,
    examples,
    learning_curves,
    neighbor_examples,
    overview,
    paired_differences,
    replaced_file,
    row_names,
)
from invnext_jax.evaluation.pages.paired_differences import Evaluation, Protocol
from invnext_jax.evaluation.pages.report import render
from invnext_jax.evaluation.pages.reported_run import name_folders
from invnext_jax.stages import registry


def write_comparison(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Writes a web page that compares evaluations with the first of them.

    Args:
      folders: workdirs of evaluations.
      out: HTML file to write.

    Raises:
      UserError: a folder has no results, or there is only one, which has no steps; or `out` is
        another file, see `replaced_file`.
    """
    replaced_file.check_replaceable(out)
    evaluations = read_evaluations(folders)
    clip_strips.clear_caches()
    protocols = dict.fromkeys(
        Protocol(row["metric"], row["evaluator"], row["input"])
        for evaluation in evaluations
        for row in evaluation.results["rows"]
    )
    runs = learning_curves.find_runs(evaluations)
    found = {
        protocol: {
            **make_table(evaluations, protocol),
            "curves": learning_curves.make_curves(runs, protocol),
        }
        for protocol in protocols
    }
    page = render(
        "comparison.html",
        evaluations=[_describe(evaluation) for evaluation in evaluations],
        overview=overview.make_overview(evaluations, found),
        curves=[
            {**curve, "about": found[protocol]["title"], "metric": found[protocol]["metric"]}
            for task, protocol in overview.choose_by_task(evaluations)
            for curve in found[protocol]["curves"]
            if curve["title"] == task
        ],
        tables=list(found.values()),
        examples=examples.make_examples(evaluations),
        neighbors=neighbor_examples.make_neighbors(evaluations),
        same_data=data_notes.describe_videos(evaluations),
        notes=[
            *data_notes.find_notes(evaluations),
            *learning_curves.find_left_out(runs, protocols),
        ],
        max_classes=class_differences.MAX_CLASSES,
        least_videos=paired_differences.LEAST_VIDEOS,
    )
    atomic_file.write_text(out, page)
    return Path(out)


def read_evaluations(folders: Sequence[str | Path]) -> list[Evaluation]:
    """Reads the results of evaluations.

    Raises:
      UserError: see `write_comparison`.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UserError("specify the workdirs of at least two evaluations")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UserError("each evaluation must be listed only once: remove the repeated workdir")
    for path in paths:
        if not os.path.isfile(path / results_file.RESULTS):
            raise UserError(
                f"{path} has no {results_file.RESULTS}: specify the --workdir of launch/evaluate.py"
            )
    found = [
        Evaluation(title, path, results_file.read_results(path))
        for title, path in zip(name_folders(paths), paths, strict=True)
    ]
    if len(found) == 1 and len(found[0].results.get("steps", ())) < 2:
        raise UserError(
            f"{paths[0]} is the only evaluation and has one checkpoint: specify another workdir, "
            "or evaluate several checkpoints with --config.steps=all"
        )
    return found


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    results = evaluation.results
    stage = registry.STAGES.get(results["stage"])
    step = results.get("step")
    encoder = stage.title if stage else results.get("title", "encoder")
    if results.get("run", {}).get("config", {}).get("ema"):
        encoder += ", moving average"
    return {
        "title": evaluation.title,
        "encoder": encoder,
        "checkpoint": results.get("checkpoint", ""),
        "step": "" if step is None else f"{step:,}",
        "clips": clip_settings.describe_clips(results["clips"]) if "clips" in results else "",
    }


def make_table(evaluations: Sequence[Evaluation], protocol: Protocol) -> dict[str, Any]:
    """Makes the table of a protocol: encoders and baselines by task, and their differences.

    Returns:
      `title`, `metric`, `tasks`, `rows` (each with `title`, `is_encoder` and `cells` by task),
      `differences` from the first evaluation, and `classes` (see `class_differences`).
    """
    form = find_format(protocol.metric)
    found = [(evaluation, evaluation.find_rows(protocol)) for evaluation in evaluations]
    found = [(evaluation, rows) for evaluation, rows in found if rows]
    baselines = _find_baselines(evaluations, protocol)
    every = [rows for _, rows in found] + list(baselines.values())
    tasks = list(dict.fromkeys(task for rows in every for task in rows))
    lines = [
        {"title": title, "is_encoder": False, "cells": _make_cells(rows, form)}
        for title, rows in baselines.items()
    ]
    encoder_lines = [
        {"title": evaluation.title, "is_encoder": True, "cells": _make_cells(rows, form)}
        for evaluation, rows in found
    ]
    for task in tasks:
        _mark_best(found, encoder_lines, task, form)
    pairs = paired_differences.find_pairs(evaluations, protocol)
    return {
        "title": examples.describe_protocol(protocol),
        "metric": form.title,
        "tasks": tasks,
        "rows": lines + encoder_lines,
        "differences": paired_differences.make_differences(pairs, tasks, form),
        "classes": [
            table
            for task in tasks
            if (table := class_differences.compare_classes(pairs, task, form)) is not None
        ],
    }


def _find_baselines(evaluations, protocol: Protocol) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the rows of baselines by title and task.

    Baselines may depend on the clips, the options and the sizes of the encoder, and random
    initialization differs between encoders. Each of them has a separate row, with the title of its
    evaluation, unless its values are equal to those of an earlier one.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    names = dict.fromkeys(name for e in evaluations for name in e.find_names(protocol))
    for name in (name for name in names if name != "encoder"):
        parts: list[tuple[str, dict[str, dict[str, Any]]]] = []
        for evaluation in evaluations:
            rows = evaluation.find_rows(protocol, name)
            if rows and _values(rows) not in [_values(other) for _, other in parts]:
                parts.append((evaluation.title, rows))
        word = row_names.in_words(name)
        for title, rows in parts:
            found[f"{word} ({title})" if name == "random" or len(parts) > 1 else word] = rows
    return found


def _values(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {task: (row["value"], row["standard_error"], row["n"]) for task, row in rows.items()}


def _make_cells(rows: Mapping[str, Mapping[str, Any]], form: MetricFormat) -> dict[str, Any]:
    return {
        task: {
            "text": form.write(row["value"]),
            "error": "" if row["standard_error"] is None else form.write(row["standard_error"]),
            "n": row["n"],
            "mark": "",
        }
        for task, row in rows.items()
    }


def _mark_best(found, lines, task: str, form: MetricFormat) -> None:
    """Marks the best encoder of a task, and those that cannot be distinguished from it.

    Only encoders with the same videos and options are compared; the largest group of them is used.
    Encoders with other videos or options are marked as such, and those whose difference from the
    best one has no interval as unknown.
    """
    entries = [
        (evaluation, rows[task], line["cells"][task])
        for (evaluation, rows), line in zip(found, lines, strict=True)
        if task in rows and not math.isnan(rows[task]["value"])
    ]
    group = [e.title for e, _ in paired_differences.largest_group([x[:2] for x in entries])]
    for entry in (entry for entry in entries if entry[0].title not in group):
        entry[2]["mark"] = "apart"
    entries = [entry for entry in entries if entry[0].title in group]
    if len(entries) < 2:
        return
    sign = 1 if form.higher_is_better else -1
    best = max(entries, key=lambda entry: sign * entry[1]["value"])
    for entry in entries:
        if entry[1]["value"] == best[1]["value"]:
            entry[2]["mark"] = "best"
            continue
        pair = paired_differences.read_pair(best[:2], entry[:2])
        if interval := paired_differences.find_interval(pair):
            entry[2]["mark"] = "" if interval.excludes_zero else "tied"
        else:
            entry[2]["mark"] = "unknown"
