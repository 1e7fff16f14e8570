"""Makes the rows and cells of the tables of results, and the differences from random encoders."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from invnext_jax.evaluation.metrics.formats import MetricFormat, find_format
from invnext_jax.evaluation.pages import row_names, row_options

_WITHOUT_ENCODER = ("pixel_baselines", "box_baselines")  # rows that do not depend on its sizes
_Groups = dict[tuple[str, ...], dict[str, dict[str, Any]]]


def make_tables(
    results: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Makes one table for each metric.

    Args:
      results: contents of results.json files.
      titles: name of the encoder of each result.

    Returns:
      A list of dicts with `title`, `is_share`, `tasks`, `n` (text with the number of videos) and
      `rows`; and sentences about values that are not shown. A row has `kind` (its name in
      results.json), `name`, `input`, `note`, and `cells` by task.
    """
    tables, bases, notes = [], _reference_titles(results, titles), {}
    for metric in dict.fromkeys(row["metric"] for result in results for row in result["rows"]):
        form = find_format(metric)
        groups, found_notes = _group_rows(results, titles, bases, metric)
        notes |= dict.fromkeys(found_notes)
        _add_gains(groups, bases, form)
        groups = _merge_equal(groups)
        cells = [cell for group in groups.values() for cell in group.values()]
        counts = sorted({cell["n"] for cell in cells})
        # If several evaluators have the same metric, the row must show the evaluator.
        ambiguous = len({key[2] for key in groups if key[0] == "encoder"}) > 1
        trained = [r for r in results if any(x["name"] == "supervised" for x in r["rows"])]
        steps = max((_count_steps(r) for r in trained), default=0)
        tables.append(
            {
                "title": form.title,
                "is_share": form.is_share,
                "tasks": list(dict.fromkeys(cell["task"] for cell in cells)),
                "n": " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),
                "rows": _chance_rows(metric, cells, form)
                + [_make_row(key, group, steps, ambiguous) for key, group in groups.items()],
            }
        )
    return tables, list(notes)


def _count_steps(result: Mapping[str, Any]) -> int:
    """Returns the training steps of the supervised encoder; 0 if they are unknown."""
    section = result["run"].get("config", {}).get("supervised")
    steps = section.get("steps") if isinstance(section, Mapping) else None
    return steps if isinstance(steps, int) else 0


def _group_rows(
    results, titles, bases: Mapping[tuple[str, str], str], metric: str
) -> tuple[_Groups, list[str]]:
    """Returns a metric's cells by (name, title, evaluator, input) and by task, and sentences.

    Reference rows, such as those of random initialization, have the title of the first evaluation
    under the same conditions; `bases` is the result of `_reference_titles`. Their first measurement
    is used. The sentences name other measurements with another value.
    """
    form, notes = find_format(metric), []
    groups: _Groups = {}
    for title, result in zip(titles, results, strict=True):
        for row in (row for row in result["rows"] if row["metric"] == metric):
            name, evaluator, task = row["name"], row["evaluator"], row["task"]
            owner = title if name == "encoder" else bases[title, evaluator]
            group = groups.setdefault((name, owner, evaluator, row["input"]), {})
            cell = make_cell(row["value"], row["standard_error"], form)
            known = group.setdefault(task, {**row, **cell})
            if known["text"] != cell["text"]:
                notes.append(
                    f"{row_names.in_words(name).capitalize()} ({row_names.in_words(evaluator)}, "
                    f"{task}) of {title} is {cell['text']}, but the table shows the first "
                    f"measurement, {known['text']}."
                )
    return groups, notes


def _reference_titles(results, titles: Sequence[str]) -> dict[tuple[str, str], str]:
    """Returns for each title and evaluator the title of the reference rows.

    It is the title of the first evaluation with the same data, clips and options, and with the same
    encoder apart from its parameters; "" for the first of them.
    """
    first: dict[str, dict[str, str]] = {}
    found = {}
    for title, result in zip(titles, results, strict=True):
        for evaluator in dict.fromkeys(row["evaluator"] for row in result["rows"]):
            with_encoder = evaluator not in _WITHOUT_ENCODER
            key = row_options.make_key(result, evaluator, with_encoder=with_encoder)
            known = first.setdefault(evaluator, {})
            found[title, evaluator] = known.setdefault(key, title if known else "")
    return found


def make_cell(value: float, standard_error: float | None, form: MetricFormat) -> dict[str, Any]:
    """Returns the cell of a value: numbers and texts."""
    return {
        "value": value,
        "standard_error": standard_error,
        "text": form.write(value),
        "error_text": "" if standard_error is None else form.write(standard_error),
    }


def _merge_equal(groups: _Groups) -> _Groups:
    """Removes reference rows whose cells are equal to those of an earlier row of the same name."""
    found: _Groups = {}
    for (name, title, *rest), cells in groups.items():
        twins = [c for (n, _, *r), c in found.items() if (n, r) == (name, rest)]
        if name == "encoder" or not any(_texts(cells) == _texts(twin) for twin in twins):
            found[name, title, *rest] = cells
    return found


def _texts(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str, int]]:
    return {task: (cell["text"], cell["error_text"], cell["n"]) for task, cell in cells.items()}


def find_chance(row: Mapping[str, Any]) -> float | None:
    """Returns the chance level that a row states, or 1 / its number of classes for top-1."""
    if row.get("chance") is None and row["metric"] == "top1" and row.get("classes"):
        return 1 / row["classes"]
    return row.get("chance")


def write_chance(rows: Sequence[Mapping[str, Any]], form: MetricFormat) -> str:
    """Returns the chance level of rows as text, as a range if they differ; "" if it is unknown."""
    levels = [level for row in rows if (level := find_chance(row)) is not None]
    ends = (min(levels), max(levels)) if levels else ()
    return " to ".join(dict.fromkeys(form.write(level) for level in ends))


def _chance_rows(
    metric: str, cells: Sequence[Mapping[str, Any]], form: MetricFormat
) -> list[dict[str, Any]]:
    """Returns a row with the chance level of each task; no row if it is unknown for all tasks.

    If rows differ in their chance level, the cell has the lowest and the highest one as text.
    """
    chance, computed = {}, metric == "top1"
    for task in dict.fromkeys(cell["task"] for cell in cells):
        found = [cell for cell in cells if cell["task"] == task and find_chance(cell) is not None]
        if found:
            level = max(map(find_chance, found))
            chance[task] = {**make_cell(level, None, form), "text": write_chance(found, form)}
            computed &= all(cell.get("chance") is None for cell in found)
    note = row_names.NOTES["chance" if computed else "random_scores"]
    row = {"kind": "chance", "name": "chance", "input": "", "note": note}
    return [{**row, "cells": chance}] if chance else []


def _make_row(key, cells: Mapping[str, Any], steps: int, ambiguous: bool) -> dict[str, Any]:
    kind, title, evaluator, what = key
    name = title if kind == "encoder" else row_names.in_words(kind)
    if title and kind != "encoder":
        name = f"{name} ({title})"
    if ambiguous and kind in ("encoder", "random"):
        name = f"{name}, {row_names.in_words(evaluator)}"
    note = row_names.NOTES.get(kind, "{evaluator}")
    note = note.format(evaluator=row_names.in_words(evaluator), steps=steps)
    what = row_names.describe_input(what)
    return {"kind": kind, "name": name, "input": what, "note": note, "cells": cells}


def find_position(kind: str) -> int:
    """Returns the position of a kind of rows in `row_names.ORDER`."""
    return row_names.ORDER.index(kind if kind in row_names.ORDER else "encoder")


def _add_gains(groups: _Groups, bases: Mapping[tuple[str, str], str], form: MetricFormat) -> None:
    """Adds the difference from random initialization to each cell of an encoder.

    The random initialization is that of the same model with the same data, clips and options; see
    `_reference_titles`. `gain` is the difference in the unit of the table and in standard errors.
    The standard error assumes that the two values are independent.
    """
    for (name, title, *rest), cells in groups.items():
        base = None
        if name == "encoder":
            base = groups.get(("random", bases[title, rest[0]], *rest))
        if base is None:
            continue
        for task in cells.keys() & base.keys():
            cell, other = cells[task], base[task]
            difference = cell["value"] - other["value"]
            text = form.write_difference(difference)
            gain = {"points": form.scale * difference, "text": text, "errors": None}
            if cell["standard_error"] is not None and other["standard_error"] is not None:
                error = math.hypot(cell["standard_error"], other["standard_error"])
                gain["errors"] = difference / error if error else math.inf
            cell["gain"] = gain
