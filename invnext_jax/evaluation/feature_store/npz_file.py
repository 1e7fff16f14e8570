"""Reads and writes .npz archives of arrays."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from invnext_jax import atomic_file, regular_file


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike, max_bytes: int) -> Iterator[Any]:
    """Opens an archive. Its arrays are read when they are accessed.

    Args:
      path: the file.
      max_bytes: maximum size of the file, and of all its arrays after decompression.

    Raises:
      Exception: one of `regular_file.DAMAGE`, also when an array is read.
    """
    # The file is opened here, because `np.load` does not close damaged archives.
    with regular_file.open_binary(path, max_bytes) as file:
        regular_file.check_archive_size(file, max_bytes)
        with np.load(file, allow_pickle=False) as archive:
            yield archive


def write_arrays(path: str | Path, /, **arrays: np.ndarray) -> None:
    """Writes an archive atomically."""
    with atomic_file.atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
