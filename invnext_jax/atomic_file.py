"""Files that are whole whenever they bear their name: written beside it, then renamed."""

import contextlib
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".part"  # ends the hidden names that files have meanwhile


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a name to write to; what lies there in the end takes the place of `path`.

    After an exception `path` is as it was. Its folder is made if needed.
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
    """Writes a whole file."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole file in UTF-8, with escapes for what that does not know."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def remove_temporary_files(path: str | os.PathLike) -> None:
    """Removes what killed writers of `path` left."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        part.unlink(missing_ok=True)
