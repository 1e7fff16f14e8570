"""Writes the tables of a sweep as a web page, Markdown or CSV."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation.metrics.formats import MetricFormat
from invnext_jax.evaluation.pages import replaced_file
from invnext_jax.evaluation.pages.paired_differences import find_places, find_verdict
from invnext_jax.evaluation.pages.report import render
from invnext_jax.evaluation.pages.reported_run import name_folders
from invnext_jax.sweeps import status_table
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.report import curves, table_text
from invnext_jax.sweeps.report.comparison import Cell, SweepTable, make_tables
from invnext_jax.sweeps.report.results import Results, collect_results
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder


def write_tables(folder: SweepFolder, out: str | Path, baseline: str = "") -> str:
    """Writes the tables of a sweep, and returns them as Markdown.

    Args:
      folder: the folder of the sweep.
      out: the file to write; ".html", ".md" or ".csv" selects the format.
      baseline: see `comparison.make_tables`.

    Raises:
      UserError: the folder has no sweep, or the file cannot be written, has another ending or other
        contents, see `replaced_file`.
    """
    writers: dict[str, Callable[..., str]] = {
        ".html": lambda: render("sweep.html", **describe_sweep(folder, results, tables)),
        ".md": lambda: markdown,
        ".csv": lambda: table_text.write_csv(tables, results.formats),
    }
    suffix = Path(out).suffix
    if suffix not in writers:
        raise UserError(f"--report={out} must end in one of {', '.join(writers)}")
    replaced_file.check_replaceable(out)
    sweep = folder.read_sweep()
    results = collect_results(sweep, status_table.read_current_states(folder, sweep))
    tables = make_tables(results, baseline)
    markdown = table_text.write_markdown(tables, results.formats, results.notes)
    try:
        atomic_file.write_text(out, writers[suffix]())
    except OSError as error:
        raise UserError(
            f"--report={out} cannot be written ({error.strerror}): choose another file, or change "
            "the permissions of its folder"
        ) from error
    return markdown


def write_pages(
    folders: Sequence[SweepFolder], out: str | Path
) -> tuple[list[str], dict[str, str]]:
    """Writes the tables of sweeps as pages next to the page `out`.

    Returns:
      The tables of each sweep as Markdown, and the file names of the pages by the name of the
      sweep, or by its path if several sweeps have the same name.

    Raises:
      UserError: see `write_tables`.
    """
    replaced_file.check_replaceable(out)
    names = name_folders([folder.path for folder in folders])
    texts, links = [], {}
    for number, (name, folder) in enumerate(zip(names, folders, strict=True), 1):
        page = Path(out).with_suffix(f".sweep{number}.html")
        texts.append(write_tables(folder, page))
        links[name] = page.name
    return texts, links


def describe_sweep(
    folder: SweepFolder, results: Results, tables: Sequence[SweepTable]
) -> dict[str, Any]:
    """Returns the contents of the page of a sweep, as for the template sweep.html."""
    sweep, states = results.sweep, results.states
    described, left, notes = [], curves.MAX_CHARTS, list(results.notes)
    for table in tables:
        described.append(_describe_table(sweep, table, results, left))
        left -= len(described[-1]["curves"])
    if not left:
        notes.append(f"Only the first {curves.MAX_CHARTS} learning curves are shown.")
    return {
        "title": folder.path.name,
        "source": sweep.source,
        "notes": notes,
        "counts": status_table.count_states(sweep, states),
        "tables": described,
        "failed": _list_failures(sweep, states),
    }


def _list_failures(sweep: ExpandedSweep, states: Mapping[str, JobState]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "arms": sweep.describe_arms(name),
            "reason": states[name].reason,
            "log": "\n".join(status_table.read_log_tail(planned.job)),
        }
        for name, planned in sweep.jobs.items()
        if states[name].status is Status.FAILED
    ]


def _describe_table(
    sweep: ExpandedSweep, table: SweepTable, results: Results, max_curves: int
) -> dict[str, Any]:
    columns = []
    unit_of_all, heads = table_text.describe_columns(table, results.formats)
    for title, (shown, unit) in zip(table.columns, heads, strict=True):
        cells = [row.cells.get(title) for row in table.rows]
        columns.append(
            {
                "title": shown,
                "unit": unit,
                "published": any(cell is not None and cell.reference is not None for cell in cells),
            }
        )
    base = [row.name for row in table.rows if row.is_baseline]
    return {
        "title": table.title,
        "unit": unit_of_all,
        "columns": columns,
        "baseline": base[0] if base else "",
        "rows": [
            {
                "name": row.name,
                "is_baseline": row.is_baseline,
                "cells": [
                    _describe_cell(row.cells.get(title), results.formats[title])
                    for title in table.columns
                ],
            }
            for row in table.rows
        ],
        "differences": _describe_differences(table, results),
        "curves": curves.make_curves(sweep, table.title, max_curves),
    }


def _describe_cell(cell: Cell | None, form: MetricFormat) -> dict[str, str]:
    if cell is None:
        return {"text": "", "error": "", "n": "", "missing": "", "published": ""}
    has_error = cell.n and not math.isnan(cell.standard_error)
    return {
        "text": form.write(cell.mean) if cell.n else "",
        "error": form.write(cell.standard_error) if has_error else "",
        "n": str(cell.n) if cell.n and cell.expected > 1 else "",
        "missing": "; ".join(cell.missing),
        "published": table_text.describe_reference(cell, form),
    }


def _describe_differences(table: SweepTable, results: Results) -> list[dict[str, Any]]:
    """Returns the differences from the baseline, with the places of the interval in a bar."""
    found = []
    for title in table.columns:
        form = results.formats[title]
        cells = [(row.name, row.cells.get(title)) for row in table.rows]
        pairs = [(name, cell.difference) for name, cell in cells if cell and cell.difference]
        ends = [
            abs(end) for _, d in pairs for end in (d.value, d.low, d.high) if not math.isnan(end)
        ]
        limit = max(ends, default=0.0) or 1.0
        for name, d in pairs:
            places, verdict = None, ""
            if not math.isnan(d.low):
                places = find_places(d.value, d.low, d.high, limit)
                verdict = find_verdict(d.value, d.low, d.high, form)
            found.append(
                {
                    "name": name,
                    "column": title,
                    "text": table_text.describe_difference(d, form),
                    "places": places,
                    "verdict": verdict,
                }
            )
    return found
