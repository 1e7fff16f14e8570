"""Writes CSV files that `csv_text.format_csv` has formatted."""

import os
from pathlib import Path

from invnext_jax import atomic_file
from invnext_jax.errors import UserError


def write_csv(path: Path, text: str) -> None:
    """Writes a text atomically; file names that are not valid UTF-8 keep their bytes."""
    atomic_file.write_bytes(path, text.encode(errors="surrogateescape"))


def check_overwrite(manifest: Path, text: str, overwrite: bool) -> None:
    """Raises `UserError` if a manifest with different content exists and `overwrite` is false."""
    content = text.encode(errors="surrogateescape")
    if not overwrite and os.path.exists(manifest) and manifest.read_bytes() != content:
        raise UserError(
            f"{manifest} exists with different content: set --overwrite to replace it, or change "
            "--out"
        )


def relative_path(path: str, folder: str | os.PathLike) -> str:
    """Makes a path inside `folder` relative, so that manifest and videos can be moved together."""
    path, folder = os.path.normpath(path), os.path.abspath(folder)
    inside = os.path.commonpath((path, folder)) == folder
    return os.path.relpath(path, folder) if inside else path
