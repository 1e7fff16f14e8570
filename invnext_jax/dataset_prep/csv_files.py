"""Writes CSV files that `csv_text.format_csv` has formatted."""

import os
from collections.abc import Mapping
from pathlib import Path

from invnext_jax import atomic_file
from invnext_jax.data import class_names
from invnext_jax.errors import UserError


def write_csv(path: Path, text: str) -> None:
    """Writes a text atomically; file names that are not valid UTF-8 keep their bytes."""
    atomic_file.write_bytes(path, text.encode(errors="surrogateescape"))


def check_overwrite(manifest: Path, text: str, overwrite: bool) -> None:
    """Raises `UserError` if a manifest with different content exists and `overwrite` is false."""
    if not overwrite and _has_other_content(manifest, text):
        raise UserError(
            f"{manifest} exists with different content: set --overwrite to replace it, or change "
            "--out"
        )


def relative_path(path: str, folder: str | os.PathLike) -> str:
    """Makes a path inside `folder` relative, so that manifest and videos can be moved together."""
    path, folder = os.path.normpath(path), os.path.abspath(folder)
    inside = os.path.commonpath((path, folder)) == folder
    return os.path.relpath(path, folder) if inside else path


def check_class_names(manifest: Path, texts: Mapping[Path, str]) -> None:
    """Checks that no class names remain from another list that had the same output.

    Args:
      manifest: The manifest to write.
      texts: The contents of the files to write, by path.

    Raises:
      UserError: The manifest exists with different content and has class names, but the new one
        has none.
    """
    path = Path(class_names.class_names_path(manifest))
    if path in texts or not os.path.exists(path):
        return
    if _has_other_content(manifest, texts[manifest]):
        raise UserError(
            f"{path} has class names of an earlier list, but the new list has none: remove the "
            "file, or change --out"
        )


def _has_other_content(path: Path, text: str) -> bool:
    """Returns whether a file exists whose content is not `text`."""
    return os.path.exists(path) and path.read_bytes() != text.encode(errors="surrogateescape")
