"""The first table of a comparison: all measurements as rows, and encoders as columns."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from invnext_jax.evaluation.heads.grid_selection import BEST_ON_VAL
from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages import row_names, table_rows
from invnext_jax.evaluation.pages.paired_differences import (
    Evaluation,
    Protocol,
    largest_group,
    same_rows,
)

VERDICTS = ("better", "worse", "unclear")


class Measurement(NamedTuple):
    """What a row of the overview shows: a task, and the protocol with the best value.

    Attributes:
      task: name of the task.
      protocol: how the values were measured.
    """

    task: str
    protocol: Protocol


def choose_measurements(evaluations: Sequence[Evaluation]) -> list[Measurement]:
    """Returns one measurement for each evaluator, metric and task, in the order of the results.

    If an evaluator has several inputs, such as poolings, the one that most encoders share with the
    same videos and options is chosen, and of several such inputs, the one with the best value of an
    encoder. Heads that were selected on the held-out videos are left out.
    """
    found: dict[tuple[str, str, str], dict[Measurement, None]] = {}
    for row in (row for e in evaluations for row in e.results["rows"] if _is_shown(row)):
        key = row["evaluator"], row["metric"], row["task"]
        protocol = Protocol(row["metric"], row["evaluator"], row["input"])
        found.setdefault(key, {})[Measurement(row["task"], protocol)] = None
    return [max(part, key=lambda m: _rank(evaluations, m)) for part in found.values()]


def choose_by_task(evaluations: Sequence[Evaluation]) -> list[Measurement]:
    """Returns one measurement for each task, chosen as in `choose_measurements`.

    Only the first metric of a task is considered, because values of others are not comparable.
    """
    best: dict[str, tuple[tuple[int, float], Measurement]] = {}
    for measurement in choose_measurements(evaluations):
        task, protocol = measurement
        rank, known = _rank(evaluations, measurement), best.get(task)
        if known is None or (known[1].protocol.metric == protocol.metric and rank > known[0]):
            best[task] = rank, measurement
    return [measurement for _, measurement in best.values()]


def _is_shown(row: Mapping[str, Any]) -> bool:
    return row["name"] == "encoder" and not row["input"].endswith(BEST_ON_VAL)


def _rank(evaluations: Sequence[Evaluation], measurement: Measurement) -> tuple[int, float]:
    """Returns the number of encoders with values for the same videos, and the best value."""
    task, protocol = measurement
    rows = [(e, row) for e in evaluations if (row := e.find_rows(protocol).get(task))]
    rows = [(e, row) for e, row in rows if _rank_value(row) > -math.inf]
    group = largest_group(rows)
    return len(group), max((_rank_value(row) for _, row in group), default=-math.inf)


def _rank_value(row: Mapping[str, Any]) -> float:
    """Returns a number that is higher for better values, and lowest for missing ones."""
    value = math.nan if row["value"] is None else row["value"]
    is_error = not find_format(row["metric"]).higher_is_better
    return -math.inf if math.isnan(value) else -value if is_error else value


def _find_reference(evaluations: Sequence[Evaluation], task: str, protocol: Protocol) -> str:
    """Returns the chance level of the encoders, as a range if they differ.

    Without a chance level, the value is that of the evaluator's best baseline without an encoder,
    of the encoders that are compared.
    """
    form = find_format(protocol.metric)
    rows = [(e, row) for e in evaluations if (row := e.find_rows(protocol).get(task))]
    if chance := table_rows.write_chance([row for _, row in rows], form):
        return chance
    key = protocol.metric, protocol.evaluator, task
    found = [
        row
        for row in (row for e, _ in largest_group(rows) for row in e.results["rows"])
        if row["name"] in row_names.BASELINES and _rank_value(row) > -math.inf
        if (row["metric"], row["evaluator"], row["task"]) == key
    ]
    if not found:
        return ""
    best = max(found, key=_rank_value)
    return f"{form.write(best['value'])} ({row_names.in_words(best['name'])})"


def find_left_out(
    evaluations: Sequence[Evaluation], measurements: Sequence[Measurement]
) -> list[str]:
    """Returns sentences about encoders that have no value in a row, or one of other videos."""
    found: dict[str, list[str]] = {}
    for task, protocol in measurements:
        rows = [(e, row) for e in evaluations if (row := e.find_rows(protocol).get(task))]
        group = [e for e, _ in largest_group(rows)]
        shown = row_names.describe_input(protocol.input)
        for e in (e for e in evaluations if e not in group):
            others = [
                row_names.describe_input(row["input"])
                for row in e.results["rows"]
                if _is_shown(row)
                and (row["metric"], row["evaluator"], row["task"])
                == (protocol.metric, protocol.evaluator, task)
            ]
            if own := [row for other, row in rows if other is e]:
                known = next(row for other, row in rows if other is group[0])
                same = same_rows((e, own[0]), (group[0], known))
                what = "options" if same else "held-out videos"
                reason = f"{e.title} and {group[0].title} have different {what}, so their "
                reason += "values are not compared"
            elif others:
                reason = f"{e.title} has no value for {shown!r}, only for "
                reason += ", ".join(map(repr, others))
            else:
                continue
            found.setdefault(reason, []).append(f"{row_names.in_words(protocol.evaluator)}, {task}")
    return [f"{reason} ({'; '.join(dict.fromkeys(rows))})." for reason, rows in found.items()]


def make_overview(
    evaluations: Sequence[Evaluation], found: Mapping[Protocol, Mapping[str, Any]]
) -> dict[str, Any]:
    """Makes the overview.

    Args:
      evaluations: the evaluations.
      found: table of each protocol; see `comparison.make_table`.

    Returns:
      `rows`, each with the `evaluator`, `task`, `metric` and `input` in words, the chance level or
      a baseline as text in `reference` ("" if unknown), and `cells`, one for each evaluation (None
      if it has no value); `counts`, with a `verdict` and the number of rows with this verdict for
      each evaluation (None without differences); and `left_out`, see `find_left_out`.
    """
    rows, counts, measurements = [], {}, choose_measurements(evaluations)
    for task, protocol in measurements:
        table = found[protocol]
        cells = {row["title"]: row["cells"].get(task) for row in table["rows"] if row["is_encoder"]}
        for difference in table["differences"]:
            if difference["task"] == task:
                counter = counts.setdefault(difference["title"], collections.Counter())
                counter[difference["verdict"]] += 1
        rows.append(
            {
                "evaluator": row_names.in_words(protocol.evaluator),
                "task": task,
                "metric": table["metric"],
                "input": row_names.describe_input(protocol.input),
                "reference": _find_reference(evaluations, task, protocol),
                "cells": [cells.get(evaluation.title) for evaluation in evaluations],
            }
        )
    titles = [evaluation.title for evaluation in evaluations]
    numbers = {
        verdict: [counts[title][verdict] if title in counts else None for title in titles]
        for verdict in VERDICTS
    }
    return {
        "rows": rows,
        "left_out": find_left_out(evaluations, measurements),
        "counts": [{"verdict": v, "numbers": n} for v, n in numbers.items()] if counts else [],
    }
