"""Reads text files and tables: encodings, separators, headers, numbers.

Names of files that are not UTF-8 keep their bytes, as surrogate escapes.
"""

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from invnext_jax.data import labels as labels_lib
from invnext_jax.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
Row = Mapping[str, str | None]


class Table(NamedTuple):
    """A table with a header.

    Attributes:
        columns: Names of the columns, without surrounding spaces.
        rows: Line number and cells by column of each row.
    """

    columns: list[str]
    rows: list[tuple[int, Row]]


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        UserError: The file cannot be read, or is not text.
    """
    try:
        data = path.read_bytes()
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16") if is_utf16 else data.decode("utf-8-sig", "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read: {error}") from error
    if "\0" in text:
        raise UserError(f"list {path} is not a text file: name a folder of videos or a list")
    return text


def split_lines(text: str) -> list[str]:
    """Splits a text at the line ends of Unix, Windows and old Macs."""
    return re.split(r"\r\n|\n|\r", text)


def read_table(path: Path, text: str, known: Sequence[str]) -> Table | None:
    """Reads a table if the first line is a header; comment lines that start with # may precede it.

    Args:
        path: The file, for messages.
        text: Content of the file.
        known: A line is a header if one of its cells is one of these names, in any case.

    Returns:
        The table, or None if the first line is not a header.

    Raises:
        UserError: A row has more cells than the header.
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
        )  # the latter is Excel's
        if line.strip() and not is_comment:
            return None
    return None


def _read_rows(path: Path, body: str, names: list[str], separator: str, skipped: int):
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise UserError(f"list {path} has the column {repeated[0]!r} twice: rename one")
    reader, rows = csv.reader(io.StringIO(body, newline=""), delimiter=separator), []
    for cells in reader:
        line = skipped + reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(names) :]):
            raise UserError(
                f"list {path}, line {line} has {len(cells)} cells, but the header has "
                f"{len(names)}: put cells that contain {SEPARATORS[separator]} in double quotes"
            )
        cells = [*cells[: len(names)], *[None] * (len(names) - len(cells))]
        rows.append((line, dict(zip(names, cells, strict=True))))
    return rows


def find_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Returns the column whose name, in any case, is the first possible one of `names`."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def parse_seconds(text: str | None, where: str) -> float | None:
    """Parses a number of seconds; None if the cell is empty or missing.

    Raises:
        UserError: The text is not a number; the message starts with `where`.
    """
    try:
        return float(text) if text and text.strip() else None
    except ValueError as error:
        raise UserError(f"{where}: {text!r} must be a number of seconds") from error


def parse_label(text: str | None, where: str) -> int:
    """Parses a class id as `labels.parse_label` does.

    Raises:
        UserError: The text is not an integer; the message starts with `where`.
    """
    try:
        return labels_lib.parse_label(text)
    except ValueError as error:
        raise UserError(
            f"{where}: {text!r} must be an integer, or blank or -1 for no label; class names "
            "belong in a column called 'label', and are numbered"
        ) from error
