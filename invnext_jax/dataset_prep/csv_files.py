"""Writes CSV files whose cells may contain any file name."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import atomic_file
from invnext_jax.errors import UserError


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as the text of a CSV file."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # the csv module does not quote a lone carriage return
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if has_return else plain).writerow(row)
    return text.getvalue()


def write_csv(path: Path, text: str) -> None:
    """Writes a text atomically; file names that are not valid UTF-8 keep their bytes."""
    atomic_file.write_bytes(path, text.encode(errors="surrogateescape"))


def check_overwrite(manifest: Path, text: str, overwrite: bool) -> None:
    """Raises `UserError` if a manifest with different content exists and `overwrite` is false."""
    content = text.encode(errors="surrogateescape")
    if not overwrite and manifest.exists() and manifest.read_bytes() != content:
        raise UserError(
            f"{manifest} exists with different content: set --overwrite to replace it, or change "
            "--out"
        )


def relative_path(path: str, folder: str | os.PathLike) -> str:
    """Makes a path inside `folder` relative, so that manifest and videos can be moved together."""
    path, folder = os.path.normpath(path), os.path.abspath(folder)
    inside = os.path.commonpath((path, folder)) == folder
    return os.path.relpath(path, folder) if inside else path
