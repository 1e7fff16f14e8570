"""Writes the tables of a sweep as Markdown and CSV."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from invnext_jax import csv_text
from invnext_jax.evaluation.metrics.formats import MetricFormat
from invnext_jax.sweeps.report.comparison import Cell, Difference, SweepTable

Formats = Mapping[str, MetricFormat]
MAX_WIDTH = 80  # of a column of Markdown; longer cells shift the rest of their row
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets evaluate cells that start with these
CSV_COLUMNS = (
    *("table", "arm", "column", "unit", "baseline", "n", "seeds", "mean", "standard_error"),
    *("published", "difference", "low", "high", "pairs", "pairs_of", "missing", "values"),
)


def describe_value(cell: Cell | None, form: MetricFormat) -> str:
    """Returns mean, standard error and number of seeds, or the states of the jobs without value."""
    if cell is None:
        return ""
    missing = "; ".join(cell.missing)
    if not cell.n:
        return missing
    text = form.write(cell.mean)
    if not math.isnan(cell.standard_error):
        text += f" ± {form.write(cell.standard_error)}"
    if cell.expected > 1:
        text += f" (n {cell.n})"
    return f"{text} [{missing}]" if missing else text


def describe_difference(difference: Difference | None, form: MetricFormat) -> str:
    """Returns a difference with its interval, such as "+1.2 [+0.3, +2.1] (3 seeds)"."""
    if difference is None:
        return ""
    if not difference.n:
        return "no seed in common"
    text = _signed(difference.value, form)
    if not math.isnan(difference.low):
        text += f" [{_signed(difference.low, form)}, {_signed(difference.high, form)}]"
    over = difference.over if difference.n != 1 else difference.over.removesuffix("s")
    return f"{text} ({difference.n:,} {over})"


def _signed(value: float, form: MetricFormat) -> str:
    return "+" * (value >= 0) + form.write(value)


def describe_reference(cell: Cell | None, form: MetricFormat) -> str:
    """Returns the published value of a cell; "" if there is none."""
    if cell is None or cell.reference is None:
        return ""
    return form.write(cell.reference / form.scale)


def describe_columns(table: SweepTable, formats: Formats) -> tuple[str, list[tuple[str, str]]]:
    """Returns the unit of a table, and the title and the unit of each column.

    A unit that all columns share is that of the table; those of the columns are then "". Titles do
    not contain their unit a second time.
    """
    columns = []
    for title in table.columns:
        unit = formats[title].title
        short = title.removesuffix(f", {unit}") if unit else title
        columns.append((short, "" if short == title and title.endswith(unit) else unit))
    units = {unit for _, unit in columns}
    if len(columns) > 1 and len(units) == 1:
        return units.pop(), [(title, "") for title, _ in columns]
    return "", columns


def write_markdown(
    tables: Sequence[SweepTable], formats: Formats, notes: Sequence[str] = ()
) -> str:
    """Returns Markdown tables of values, published values and differences from the baseline.

    Args:
      tables: the tables.
      formats: how to write the values of each column.
      notes: sentences after the tables; see `Results`.
    """
    parts = []
    for table in tables:
        if table.title:
            parts.append(f"## {table.title}\n")
        if unit := describe_columns(table, formats)[0]:
            parts.append(f"Values: {unit}\n")
        parts.append(_write_rows(*_make_columns(table, formats)))
        if not table.columns:
            parts.append("No job with values for this table has finished yet.\n")
    parts += [f"{note}\n" for note in notes]
    return "\n".join(parts)


def _make_columns(table: SweepTable, formats: Formats) -> tuple[list[str], list[list[str]]]:
    """Returns the heads and the rows of a table. Columns without any content are left out."""
    heads, columns = ["arm"], [[row.name + " (baseline)" * row.is_baseline for row in table.rows]]
    for title, parts in zip(table.columns, describe_columns(table, formats)[1], strict=True):
        form, cells = formats[title], [row.cells.get(title) for row in table.rows]
        heads.append(", ".join(filter(None, parts)))
        columns.append([describe_value(cell, form) for cell in cells])
        for head, texts in (
            ("published", [describe_reference(cell, form) for cell in cells]),
            ("difference", [describe_difference(c and c.difference, form) for c in cells]),
        ):
            if any(texts):
                heads.append(head)
                columns.append(texts)
    return heads, [list(row) for row in zip(*columns, strict=True)]


def _write_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[text.replace("|", "\\|") for text in row] for row in (heads, *rows)]
    widths = [min(max(map(len, column)), MAX_WIDTH) for column in zip(*escaped, strict=True)]
    lines = [
        "| " + " | ".join(f"{text:{w}}" for text, w in zip(row, widths, strict=True)) + " |"
        for row in escaped
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def write_csv(tables: Sequence[SweepTable], formats: Formats) -> str:
    """Returns a CSV file with a line for each arm and column, in the units of the tables.

    An apostrophe precedes names that a spreadsheet would evaluate as a formula.
    """
    lines: list[Sequence[Any]] = [CSV_COLUMNS]
    for table in tables:
        for row in table.rows:
            for title, cell in row.cells.items():
                about = {"table": table.title, "arm": row.name, "column": title}
                about |= {"unit": formats[title].title, "missing": "; ".join(cell.missing)}
                texts = {name: _mark_text(text) for name, text in about.items()}
                fields = {**texts, "baseline": row.is_baseline}
                fields |= _csv_fields(cell, formats[title].scale)
                lines.append([fields[name] for name in CSV_COLUMNS])
    return csv_text.format_csv(lines)


def _mark_text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv_fields(cell: Cell, scale: float) -> dict[str, Any]:
    def number(value: float | None) -> str:
        return "" if value is None or math.isnan(value) else f"{value:.10g}"

    difference = cell.difference or Difference(math.nan, math.nan, math.nan, 0, "")
    values = [
        number(scale * value) if seed is None else f"{seed}:{number(scale * value)}"
        for seed, value in cell.values.items()
    ]
    return {
        "n": cell.n,
        "seeds": cell.expected,
        "mean": number(scale * cell.mean),
        "standard_error": number(scale * cell.standard_error),
        "published": number(cell.reference),
        "difference": number(scale * difference.value),
        "low": number(scale * difference.low),
        "high": number(scale * difference.high),
        "pairs": difference.n if cell.difference else "",
        "pairs_of": difference.over,
        "values": " ".join(values),
    }
