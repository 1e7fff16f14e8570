"""The first table of a comparison: all measurements as rows, and encoders as columns."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from invnext_jax.evaluation import tables
from invnext_jax.evaluation.heads.grid_selection import BEST_ON_VAL
from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.evaluation.pages.paired_differences import Evaluation, Protocol

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

    If an evaluator has several inputs, such as poolings, the one with the best value of an encoder
    is chosen. Heads that were selected on the held-out videos are left out.
    """
    best: dict[tuple[str, str, str], tuple[float, Measurement]] = {}
    for row in (row for e in evaluations for row in e.results["rows"]):
        if row["name"] != "encoder" or row["input"].endswith(BEST_ON_VAL):
            continue
        protocol = Protocol(row["metric"], row["evaluator"], row["input"])
        value = _rank_value(row)
        key = row["evaluator"], row["metric"], row["task"]
        if key not in best or value > best[key][0]:
            best[key] = value, Measurement(row["task"], protocol)
    return [measurement for _, measurement in best.values()]


def choose_by_task(evaluations: Sequence[Evaluation]) -> list[Measurement]:
    """Returns one measurement for each task: that of the evaluator with the best value.

    Only the first metric of a task is considered, because values of others are not comparable.
    """
    best: dict[str, tuple[float, Measurement]] = {}
    for measurement in choose_measurements(evaluations):
        task, protocol = measurement
        rows = [e.find_rows(protocol).get(task) for e in evaluations]
        value = max(_rank_value(row) for row in rows if row)
        known = best.get(task)
        if known is None or (known[1].protocol.metric == protocol.metric and value > known[0]):
            best[task] = value, measurement
    return [measurement for _, measurement in best.values()]


def _rank_value(row: Mapping[str, Any]) -> float:
    """Returns a number that is higher for better values, and lowest for missing ones."""
    value = math.nan if row["value"] is None else row["value"]
    is_error = not find_format(row["metric"]).higher_is_better
    return -math.inf if math.isnan(value) else -value if is_error else value


def _find_chance(evaluations: Sequence[Evaluation], task: str, protocol: Protocol) -> str:
    """Returns the chance level that the rows state, or that follows from the number of classes."""
    found = (evaluation.find_rows(protocol).get(task) for evaluation in evaluations)
    row = next(filter(None, found))
    level = row.get("chance")
    if level is None and protocol.metric == "top1" and row.get("classes"):
        level = 1 / row["classes"]
    return "" if level is None else find_format(protocol.metric).write(level)


def make_overview(
    evaluations: Sequence[Evaluation], found: Mapping[Protocol, Mapping[str, Any]]
) -> dict[str, Any]:
    """Makes the overview.

    Args:
      evaluations: the evaluations.
      found: table of each protocol; see `comparison.make_table`.

    Returns:
      `rows`, each with the `evaluator`, `task`, `metric` and `input` in words, the level of
      `chance` as text ("" if it is unknown), and `cells`, one for each evaluation (None if it has
      no value); and `counts`, with a `verdict` and the number of rows with this verdict for each
      evaluation (None without differences).
    """
    rows, counts = [], {}
    for task, protocol in choose_measurements(evaluations):
        table = found[protocol]
        cells = {row["title"]: row["cells"].get(task) for row in table["rows"] if row["is_encoder"]}
        for difference in table["differences"]:
            if difference["task"] == task:
                counter = counts.setdefault(difference["title"], collections.Counter())
                counter[difference["verdict"]] += 1
        rows.append(
            {
                "evaluator": tables.in_words(protocol.evaluator),
                "task": task,
                "metric": table["metric"],
                "input": tables.INPUTS.get(protocol.input, protocol.input),
                "chance": _find_chance(evaluations, task, protocol),
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
        "counts": [{"verdict": v, "numbers": n} for v, n in numbers.items()] if counts else [],
    }
