"""Formats, parses and checks CSV files whose cells may contain any file name."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from invnext_jax.errors import UserError

MAX_SIZE = 2**32  # maximum number of characters of a manifest
MAX_LINE = 2**24  # maximum number of characters of a line, which may contain captions


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as the text of a CSV file."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # the csv module does not quote a lone carriage return
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if has_return else plain).writerow(row)
    return text.getvalue()


def read_first_cells(text: str) -> Iterator[str]:
    """Yields the first cell of each row of a CSV file; rows that cannot be parsed are skipped."""
    rows = csv.reader(io.StringIO(text, newline=""))
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            continue
        if row is None:
            return
        yield from row[:1]


def check_repeated(where: str, columns: Sequence[str]) -> None:
    """Checks that no two columns have the same name, ignoring case and surrounding spaces.

    Args:
      where: The file, for the message, such as "manifest a.csv".
      columns: The cells of the header. Blank names are ignored.

    Raises:
      UserError: A name is repeated.
    """
    names: dict[str, str] = {}
    for name in filter(str.strip, columns):
        plain = name.strip().lower()
        if plain in names:
            which = f"{name!r} twice" if names[plain] == name else f"{names[plain]!r} and {name!r}"
            raise UserError(f"{where} has the column {which}: rename one")
        names[plain] = name


def check_cells(
    line: str, cells: Sequence[str], columns: Sequence[str], separators: str = "commas"
) -> None:
    """Checks that a row has a cell for each column. Blank cells may follow them.

    Args:
      line: The line, for the message, such as "manifest a.csv, line 3".
      cells: The cells of the row.
      columns: The cells of the header. Blank names at the end need no cells.
      separators: What separates the cells, for the message.

    Raises:
      UserError: The row has more or fewer cells.
    """
    is_longer = any(cell.strip() for cell in cells[len(columns) :])
    if is_longer or any(columns[len(cells) :]):
        change = (
            f"put cells that contain {separators} in double quotes"
            if is_longer
            else "give each column a cell, which may be empty"
        )
        raise UserError(
            f"{line} has {len(cells)} cells, but the header has {len(columns)}: {change}"
        )


def read_lines(file: TextIO, max_size: int = MAX_SIZE) -> Iterator[str]:
    """Yields the lines of a file, which may be sparse, or come from a server that never ends it.

    Raises:
      csv.Error: A line has more than `MAX_LINE` characters, or all lines more than `max_size`.
    """
    size = 0
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise csv.Error(f"it has a line of more than {MAX_LINE} characters")
        size += len(line)
        if size > max_size:
            raise csv.Error(f"it has more than {max_size} characters")
        yield line
