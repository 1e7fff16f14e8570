"""Reads text files and tables with various encodings, separators and headers.

Bytes of file names that are not valid UTF-8 become surrogate escapes.
"""

import codecs
import csv
import errno
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from invnext_jax import csv_text, regular_file
from invnext_jax.data import columns as columns_lib
from invnext_jax.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
MAX_BYTES = 2**32  # maximum size of a list of lines or of a table
# Maximum size of a JSON list. It is parsed as a whole, which needs about 30 times more memory.
MAX_JSON_BYTES = 2**26
MAX_JSON_LINES_BYTES = 2**30


class Row(Mapping):
    """A mapping from columns to cells, which needs less memory than a dict.

    The cells of nameless columns at the end may be missing; they are None.
    """

    __slots__ = ("_cells", "_places")

    def __init__(self, places: Mapping[str, int], cells: Sequence[str]):
        """Creates the row.

        Args:
          places: Position of each column, shared by all rows of a table.
          cells: The cells.
        """
        self._places, self._cells = places, cells

    def __getitem__(self, column: str) -> str | None:
        place = self._places[column]
        return self._cells[place] if place < len(self._cells) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Table(NamedTuple):
    """A table with a header.

    Attributes:
      columns: Names of the columns, without surrounding spaces.
      rows: Line number of each row, and the row.
    """

    columns: list[str]
    rows: list[tuple[int, Row]]


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
      UserError: The file cannot be read, or is not a text file.
    """
    limits = {".json": MAX_JSON_BYTES, ".jsonl": MAX_JSON_LINES_BYTES}
    limit = limits.get(path.suffix, MAX_BYTES)
    try:
        data = regular_file.read_bytes(path, limit)
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16") if is_utf16 else data.decode("utf-8-sig", "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) == errno.EFBIG:
            change = "write one object per line (.jsonl)" if path.suffix == ".json" else "split it"
            raise UserError(f"list {path} has more than {limit} bytes: {change}") from error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"list {path} cannot be read: {reason}") from error
    if "\0" in text:
        raise UserError(f"list {path} is not a text file: specify a folder of videos or a list")
    return text


def split_lines(text: str) -> list[str]:
    """Splits a text at Unix, Windows and classic Mac OS line ends."""
    return re.split(r"\r\n|\n|\r", text)


def read_table(path: Path, text: str, known: Sequence[str]) -> Table | None:
    """Reads a table whose first line is a header. Comment lines starting with # may precede it.

    Args:
      path: Path of the file, for error messages.
      text: Content of the file.
      known: Names of columns. A line is a header if one of its cells is one of them, ignoring
          case.

    Returns:
      The table, or None if the first line is not a header.

    Raises:
      UserError: A name is repeated, a row has more or fewer cells than the header, or the header
        has more than `columns.MAX_COLUMNS`.
    """
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        for separator in SEPARATORS:
            names = next(csv.reader([line.strip("\r\n")], delimiter=separator), [])
            names = [name.strip().lstrip("#").strip() for name in names]
            if any(name.lower() in known for name in names):
                body = "".join(lines[number + 1 :])
                return Table(names, _read_rows(path, body, names, separator, number + 1))
        is_comment = line.lstrip().startswith("#") or line.startswith(
            "sep="
        )  # Excel writes the latter
        if line.strip() and not is_comment:
            return None
    return None


def _read_rows(path: Path, body: str, names: list[str], separator: str, skipped: int):
    columns_lib.check_count(f"list {path}", names)
    csv_text.check_repeated(f"list {path}", names)
    reader, rows = csv.reader(io.StringIO(body, newline=""), delimiter=separator), []
    places = {name: place for place, name in enumerate(names)}
    for cells in reader:
        line = skipped + reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        csv_text.check_cells(f"list {path}, line {line}", cells, names, SEPARATORS[separator])
        rows.append((line, Row(places, cells[: len(names)])))
    return rows


def find_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Returns the column that matches the earliest of `names`, ignoring case."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def parse_seconds(text: str | None, where: str) -> float | None:
    """Parses a number of seconds; returns None if the cell is empty, missing or "nan".

    Raises:
      UserError: The text is not a finite number. The message starts with `where`.
    """
    try:
        seconds = columns_lib.parse_seconds(text) if text and text.strip() else math.nan
        if math.isinf(seconds):
            raise ValueError("it is infinite")
        return None if math.isnan(seconds) else seconds
    except ValueError as error:
        raise UserError(f"{where}: {text!r} must be a number of seconds") from error


def parse_label(text: str | None, where: str) -> int:
    """Parses a class id, like `columns_lib.parse_label`.

    Raises:
      UserError: The text is not an integer, or not a class id. The message starts with `where`.
    """
    try:
        label = columns_lib.parse_label(text)
    except ValueError as error:
        raise UserError(
            f"{where}: {text!r} must be an integer, or blank or -1 for no label; put class names "
            "in a column called 'label', where they are numbered"
        ) from error
    columns_lib.check_class_id(label, f"{where}: {label}")
    return label
