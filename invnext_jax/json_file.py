"""Reads JSON files from untrusted sources. Any problem raises a one-sentence `UserError`."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from invnext_jax import regular_file
from invnext_jax.errors import UserError

MAX_BYTES = 2**24  # the largest JSON files of published models and data sets are about 2 MiB


def read_value(
    path: str | os.PathLike, advice: str = "download it again", max_bytes: int = MAX_BYTES
) -> Any:
    """Returns the contents of a JSON file.

    Args:
      path: The file.
      advice: What the user should do if the file is damaged.
      max_bytes: Maximum size of the file. The parsed contents may need ten times as much memory.

    Raises:
      UserError: The file is missing, not a regular file, too large, nested too deeply or not valid
          JSON.
    """
    try:
        return json.loads(regular_file.read_bytes(path, max_bytes).decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {advice}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: {advice}") from error
    except MemoryError as error:
        raise UserError(f"{path} needs too much memory: {advice}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from error


def read_object(
    path: str | os.PathLike, advice: str = "download it again", max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Returns the contents of a JSON file that contains an object; see `read_value`.

    Raises:
      UserError: As in `read_value`, or the file does not contain an object.
    """
    content = read_value(path, advice, max_bytes)
    if not isinstance(content, dict):
        raise UserError(f"{Path(path)} does not contain a JSON object: {advice}")
    return content


def load_unique(text: str) -> Any:
    """Parses JSON; of names that occur twice in an object, `json.loads` uses the last one.

    Raises:
      ValueError: The text is not valid JSON, or a name occurs twice in an object.
    """

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return found

    return json.loads(text, object_pairs_hook=make_object)


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON-serializable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
