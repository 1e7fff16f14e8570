"""Labels in manifests, and class names, which `<manifest>.classes.json` maps to class ids."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from invnext_jax.errors import UserError

SUFFIX = ".classes.json"
NO_LABEL = -1
_BLANK = ("", "nan", "none", "null", "na", "n/a")  # in lower case, as pandas and others write them


def parse_label(text: str | None) -> int:
    """Parses a class id: an integer, possibly written as "3.0", or -1 for a blank cell.

    Raises:
        ValueError: The cell is missing or not an integer.
    """
    if text is None:
        raise ValueError("the cell is missing")
    text = text.strip()
    if text.lower() in _BLANK:
        return NO_LABEL
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def path_of(manifest: str | os.PathLike) -> Path:
    """Returns the path of the class names that belong to a manifest."""
    return Path(os.fspath(manifest).removesuffix(".csv") + SUFFIX)


def read_names(path: str | os.PathLike) -> dict[str, int]:
    """Reads class names: a JSON object of ids by name, a JSON list, or one name per line.

    Raises:
        OSError: The file cannot be read.
        ValueError: The format of the file is not one of these, or two names have the same id.
    """
    text = Path(path).read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text) if os.fspath(path).endswith(".json") else text.split("\n")
        if isinstance(content, dict):
            content = {str(name): int(number) for name, number in content.items()}
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError("it must map names to integers") from error
    if isinstance(content, dict):
        names = content
        if len(set(names.values())) < len(names):
            raise ValueError("two names have the same number")
        return names
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(
            "it must contain a JSON object that maps names to numbers, or a list of names"
        )
    stripped = [name.strip() for name in content]
    return {name: number for number, name in enumerate(filter(None, stripped))}


def read_of_manifest(manifest: str | os.PathLike) -> dict[str, int] | None:
    """Returns the class ids by name that belong to a local manifest, or None if there are none.

    Raises:
        UserError: The file of class names is damaged.
    """
    path = path_of(manifest)
    if not path.is_file():
        return None
    try:
        return read_names(path)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): index the list again, or remove the file"
        ) from error


def describe_conflict(first: Mapping[str, int], second: Mapping[str, int]) -> str:
    """Describes a name that has two ids, or an id that has two names; "" without a conflict."""
    for name, number in second.items():
        if first.get(name, number) != number:
            return f"class {name!r} has the number {first[name]} in one and {number} in the other"
    names = {number: name for name, number in first.items()}
    for name, number in second.items():
        if names.get(number, name) != name:
            return f"number {number} is {names[number]!r} in one and {name!r} in the other"
    return ""
