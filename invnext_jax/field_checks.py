"""Checks of the types and ranges of fields in JSON objects from untrusted sources."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from invnext_jax import sanitize
from invnext_jax.errors import UserError

MAX_NUMBER = 1e100  # maximum absolute value of a number
MAX_NAME = 500  # maximum number of characters of a name

Check = tuple[Callable[[Any], bool], str]  # a test, and what it accepts in words
Fields = Mapping[str, Check]


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number that pages can scale without overflow."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER  # bool is a subclass of int


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    """Returns whether a value is text that a page can have; JSON can contain single surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def optional(check: Check) -> Check:
    """Returns a check that also accepts null."""
    test, words = check
    return (lambda value: value is None or test(value)), f"{words} or null"


def in_range(low: float, high: float) -> Check:
    """Returns a check of a number."""
    test = lambda value: type(value) in (int, float) and low <= value <= high  # noqa: E731
    return test, f"a number from {low:g} to {high:g}"


def integer(low: int, high: int) -> Check:
    """Returns a check of an integer."""
    test = lambda value: type(value) is int and low <= value <= high  # noqa: E731
    return test, f"an integer from {low} to {high}"


def list_of(check: Check, words: str) -> Check:
    """Returns a check of all elements of a list."""
    return (lambda value: isinstance(value, list) and all(map(check[0], value))), words


def object_of(check: Check, words: str, names: Check | None = None) -> Check:
    """Returns a check of all values of an object, and of its names."""
    is_name = names[0] if names else is_text
    test = lambda value: (  # noqa: E731
        isinstance(value, dict) and all(map(is_name, value)) and all(map(check[0], value.values()))
    )
    return test, words


def line(low: int, high: int) -> Check:
    """Returns a check of a string without line breaks and control characters, and of its length."""
    test = lambda value: (  # noqa: E731
        isinstance(value, str) and low <= len(value) <= high and sanitize.is_line(value)
    )
    return test, f"a line of {low} to {high} printable characters"


def list_up_to(limit: int, words: str) -> Check:
    """Returns a check of the type and the length of a list."""
    test = lambda value: isinstance(value, list) and len(value) <= limit  # noqa: E731
    return test, f"a list of at most {limit:,} {words}"


TEXT, NAME = (is_text, "a string of Unicode characters"), line(1, MAX_NAME)
COUNT = (_is_count, "an integer that is at least 0")
NUMBER = (is_number, "a finite number")
OBJECT = (_is_object, "an object")


def check_fields(
    found: Mapping[str, Any],
    fields: Fields,
    where: str,
    advice: str,
    required: Iterable[str] = (),
) -> None:
    """Checks the fields of an object. Fields without an entry in `fields` are not checked.

    Args:
      found: the object.
      fields: the check of each field.
      where: text in front of the name of a field in the error message.
      advice: what the user should do if a field is wrong.
      required: fields that must exist.

    Raises:
      UserError: a field has an unexpected type or value, or a required one is missing.
    """
    for name in required:
        if name not in found:
            raise UserError(f"{where}{name} is missing: {advice}")
    for name, (test, words) in fields.items():
        if name in found and not test(found[name]):
            raise UserError(f"{where}{name}={found[name]!r:.80} is not {words}: {advice}")


def check_types(found: Any, fields: Fields) -> None:
    """Checks all fields of an object, for callers that add the name of its file.

    Raises:
      KeyError, TypeError: a field is missing, or does not pass its check.
    """
    for name, (test, words) in fields.items():
        if not isinstance(found, dict) or not test(found[name]):
            raise TypeError(f"{name} is not {words}")


def check_depth(value: Any, limit: int, source: str, advice: str) -> None:
    """Checks the number of nested objects and lists, because others read them recursively.

    Raises:
      UserError: there are more than `limit`.
    """
    parts = [value]
    for _ in range(limit + 1):
        parts = [part for part in parts if isinstance(part, dict | list)]
        parts = [x for part in parts for x in (part.values() if isinstance(part, dict) else part)]
        if not parts:
            return
    raise UserError(f"{source} is nested too deeply: {advice}")


def check_names(tree: Mapping[str, Any], limit: int, source: str, advice: str) -> None:
    """Checks the total length of the dotted names of all values of nested objects.

    Raises:
      UserError: they have more than `limit` characters.
    """
    total, parts = 0, [(0, tree)]
    while parts and total <= limit:
        length, part = parts.pop()
        for name, value in part.items():
            total += length + len(name) + 1
            if isinstance(value, dict):
                parts.append((length + len(name) + 1, value))
    if total > limit:
        raise UserError(f"{source} has too many or too long names: {advice}")
