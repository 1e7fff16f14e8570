"""Reads and writes the small files next to shards, which may be on a remote file system."""

import json
import os
from typing import Any

from etils import epath

from invnext_jax import atomic_file, json_file
from invnext_jax.data import video_io
from invnext_jax.errors import UserError

MAX_BYTES = 2**28  # a row of a report has about 100 bytes


def read_json(path: epath.Path, advice: str = "specify a new folder") -> Any:
    """Returns the contents of a local or remote JSON file in the folder of a data set.

    Raises:
      UserError: The file is missing, damaged, too large or not a regular file.
    """
    if not video_io.is_remote(os.fspath(path)):
        return json_file.read_value(path, advice, MAX_BYTES)
    try:
        if (size := path.stat().length) > MAX_BYTES:
            raise OSError(f"{size:,} bytes are more than {MAX_BYTES:,}")
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): {advice}") from error


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file, atomically if it is local."""
    if video_io.is_remote(os.fspath(path)):
        path.write_text(text)
    else:
        atomic_file.write_text(path, text)
