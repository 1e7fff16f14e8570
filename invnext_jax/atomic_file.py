"""Atomic writes: write a temporary file in the same folder, then rename it."""

import contextlib
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".part"  # suffix of the hidden temporary files


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` on exit.

    If an exception is raised, `path` is unchanged. The folder is created if it does not exist.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file atomically. Characters that UTF-8 cannot encode are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def remove_temporary_files(path: str | os.PathLike) -> None:
    """Removes temporary files that were left by processes killed while writing `path`."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        part.unlink(missing_ok=True)
