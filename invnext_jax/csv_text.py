"""Formats and parses the text of CSV files whose cells may contain any file name."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


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
