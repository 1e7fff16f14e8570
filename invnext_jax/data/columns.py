"""Columns of manifests: checks of their names, and of labels.

Only `path`, `source`, `start`, `end`, `record` and `label_<task>` are read, and for records
`original` and `ORIGINAL_TIMES`. launch/prepare_data.py writes the `INFORMATIVE` columns for the
user.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from invnext_jax import csv_text, sanitize
from invnext_jax.errors import UserError

NO_LABEL = -1
_BLANK = ("", "nan", "none", "null", "na", "n/a")  # in lower case, as pandas and others write them
LABEL_PREFIX = "label_"
MAX_COLUMNS = 1000
MAX_LISTED = 20  # maximum number of columns in the warning about columns that are not read
MAX_CLASS = 2**31 - 1  # labels are int32
READ = ("path", "source", "start", "end", "record")
ORIGINAL_TIMES = ("original_start", "original_end")
INFORMATIVE = (
    *("duration", "frames", "width", "height", "fps", "codec", "rotation", "mirrored", "sar"),
    *("transfer", "flags", "original"),
)
# Words in the names of columns that seem to contain the start or end of clips.
_RANGE_WORDS = {
    "start": {"start", "starts", "begin", "begins", "beginning", "onset", "from"},
    "end": {"end", "ends", "stop", "stops", "finish", "to"},
}
_NUMBERED = {"t0": "start", "t1": "end"}
# Columns of these words and of units may contain both limits in one cell, such as "12.5-20".
_BOTH_WORDS = {"segment", "segments", "interval", "intervals", "range", "ranges", "timestamps"}
_DURATION_WORDS = {"duration", "durations", "dur", "length", "len"}
_UNIT_WORDS = {
    *("t", "time", "times", "timestamp", "s", "sec", "secs", "second", "seconds", "ms", "msec"),
    *("frame", "frames", "clip", "segment", "video", "trim", "idx", "index"),
}
_NUMBER_WORDS = {"idx", "index"}  # a segment with a number may be a whole file


def check_count(name: str, columns: Sequence[str]) -> None:
    """Raises `UserError` if a table with this name has more than `MAX_COLUMNS` columns."""
    if len(columns) > MAX_COLUMNS:
        raise UserError(
            f"{name} has {len(columns):,} columns, more than {MAX_COLUMNS:,}: remove those that "
            "are not read"
        )


def check_columns(manifest: str, columns: Sequence[str]) -> None:
    """Checks the header of a manifest, and logs the columns that are not read.

    Raises:
      UserError: There are more than `MAX_COLUMNS` columns; a name is repeated; or a column seems to
          contain labels, records, or the limits of clips, but has another name than the one that is
          read.
    """
    check_count(f"manifest {manifest}", columns)
    csv_text.check_repeated(f"manifest {manifest}", columns)
    read = ORIGINAL_TIMES if "record" in columns else ()
    others = [name for name in columns if name and not _is_known(name) and name not in read]
    for name in others:
        meant = _find_meant(name)
        if meant.startswith(LABEL_PREFIX) or meant == "record":
            raise UserError(
                f"manifest {manifest} has a column {name!r}, which is not read: rename it to "
                f"{meant!r}, or to {'other_' + meant!r} to ignore it"
            )
    refuse_ranges(f"manifest {manifest}", filter(None, columns), columns)
    if others:
        more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        _warn_once(
            f"manifest {sanitize.redact_urls(manifest)}: columns that are not read: "
            f"{', '.join(map(_describe, others[:MAX_LISTED]))}{more}"
        )


def refuse_ranges(where: str, columns: Iterable[str], read: Collection[str]) -> None:
    """Raises an error if an unread column seems to contain the start or end of clips.

    Args:
      where: The file, for the message, such as "manifest a.csv".
      columns: The columns that are not read.
      read: The columns that are read; "start" and "end" if they are.

    Raises:
      UserError: A column seems to contain the start, end or duration of clips, and none is read.
    """
    for name in columns:
        if {"start", "end"} & set(read) == {"start"} and _is_duration(name):
            raise UserError(
                f"{where} has a column {name!r}, which is not read, and no column 'end': add a "
                "column 'end' in seconds, use launch/prepare_data.py index, which ends clips at "
                f"'start' + 'duration', or rename it to {'original_' + name!r} to use files to "
                "their end"
            )
        meant = _find_meant(name)
        if _is_whole_range(name) and not {"start", "end"} <= set(read):
            raise UserError(
                f"{where} has a column {name!r}, which is not read: replace it by the columns "
                "'start' and 'end' in seconds if clips should be cut from this part of each file, "
                f"or rename it to {'original_' + name!r} to use whole files"
            )
        if meant in _RANGE_WORDS and meant not in read:
            raise UserError(
                f"{where} has a column {name!r}, which is not read: rename it to "
                f"{meant!r} and give it in seconds if clips should be cut from this part of each "
                f"file, or rename it to {'original_' + meant!r} to use whole files"
            )


def refuse_segments(where: str, entry: Mapping[str, Any]) -> None:
    """Raises an error if a field of a JSON object seems to contain the start or end of a clip.

    Args:
      where: The file, for the message, such as "list a.json".
      entry: The object. Fields that are null are ignored.
    """
    fields = tuple(name for name, value in entry.items() if value is not None)
    if name := _find_range_field(fields):
        raise UserError(
            f"{where} has a field {name!r}, which is not read: cut the videos into files if they "
            f"have several segments, or rename it to {'original_' + name!r} to use whole videos"
        )


@functools.lru_cache(maxsize=64)
def _find_range_field(fields: tuple[str, ...]) -> str:
    ranges = (f for f in fields if _is_whole_range(f) or _find_meant(f) in _RANGE_WORDS)
    return next(ranges, "")


def _is_known(name: str) -> bool:
    return name in READ or name in INFORMATIVE or name.startswith(LABEL_PREFIX)


def _find_meant(name: str) -> str:
    """Returns the name by which the column `name` would be read, or "" if no name fits."""
    words = _words(name)
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    if plain == "record" or (plain.startswith(LABEL_PREFIX) and plain != LABEL_PREFIX):
        return plain
    if plain in _NUMBERED:
        return _NUMBERED[plain]
    for meant, range_words in _RANGE_WORDS.items():
        if range_words & words and words <= range_words | _UNIT_WORDS:
            return meant
    return ""


def _is_whole_range(name: str) -> bool:
    """Returns whether a column seems to contain both the start and the end of clips."""
    words = _words(name)
    return bool(words & _BOTH_WORDS) and words <= (_BOTH_WORDS | _UNIT_WORDS) - _NUMBER_WORDS


def _is_duration(name: str) -> bool:
    """Returns whether a column seems to contain the duration of clips, rather than of files."""
    words = _words(name)
    return bool(words & _DURATION_WORDS) and words <= (_DURATION_WORDS | _UNIT_WORDS) - {"video"}


def _words(name: str) -> set[str]:
    """Returns the words of a name in lower case, such as {"start", "time"} for "startTime"."""
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def _describe(name: str) -> str:
    known = (*READ, f"{LABEL_PREFIX}<task>")
    plain = name.strip().lower()
    near = "label_<task>" if plain in ("label", "labels") else _find_meant(name)
    near = near or next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=0.75)), "")
    return f"{name!a} (similar to {near!r})" if near else f"{name!a}"


@functools.cache
def _warn_once(sentence: str) -> None:
    # Cached, because manifests are read several times.
    logging.warning("%s", sentence)


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
    return parse_integer(text)


def parse_integer(text: str) -> int:
    """Parses an integer, possibly written as "3.0".

    Raises:
      ValueError: The text is not an integer. "1_10" and "1e2", which Python reads as 110 and 100,
        may be names of classes.
    """
    if not (match := re.fullmatch(r"\s*([+-]?\d+)(?:\.0*)?\s*", text)):
        raise ValueError(f"{text[:40]!a} is not an integer")
    return int(match[1])


def is_class_id(number: int) -> bool:
    """Returns whether a number can be a class id, or -1 for no label: labels are int32."""
    return NO_LABEL <= number <= MAX_CLASS


def check_class_id(number: int, description: str) -> None:
    """Raises `UserError`, whose message starts with `description`, unless `is_class_id(number)`."""
    if not is_class_id(number):
        raise UserError(
            f"{description} is not between -1 (no label) and {MAX_CLASS}: number the classes from 0"
        )


def parse_cell(
    parse: Callable[[str | None], Any], text: str | None, line: str, column: str, what: str
) -> Any:
    """Parses a cell of a manifest with `parse`.

    Args:
      parse: Function that parses the text.
      text: Text of the cell; None if it is missing.
      line: Place of the row, for the message.
      column: Name of the column.
      what: Description of a valid cell, for example "an integer".

    Raises:
      UserError: The text cannot be parsed.
    """
    try:
        return parse(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{line}: {text!r} in column {column!r} is not {what}") from error


def parse_label_cell(text: str | None, line: str, column: str) -> int:
    """Parses a cell with a class id; see `parse_cell` and `is_class_id`."""
    label = parse_cell(parse_label, text, line, column, "an integer: number the classes")
    check_class_id(label, f"{line}: {label} in column {column!r}")
    return label


def parse_seconds(text: str) -> float:
    """Parses a number; raises `ValueError` for others and for "1_30", which Python reads as 130."""
    if "_" in text:
        raise ValueError(f"{text[:40]!a} is not a number")
    return float(text)


def parse_seconds_cell(text: str | None, line: str, column: str) -> float:
    """Parses a cell with a time in seconds; NaN for a blank cell. See `parse_cell`."""
    seconds = parse_cell(parse_seconds, text or "nan", line, column, "a number")
    if seconds < 0 or math.isinf(seconds):
        raise UserError(f"{line}: {text} in column {column!r} must be finite and at least 0")
    return seconds


def parse_record_cell(text: str | None, line: str, no_record: int) -> int:
    """Parses the position of a video in a shard; `no_record` for a blank cell. See `parse_cell`."""
    record = parse_cell(parse_integer, text or str(no_record), line, "record", "an integer")
    if not no_record <= record < 2**63:
        raise UserError(f"{line}: record {record} must be at least 0")
    return record


def check_path(path: str, line: str) -> str:
    """Returns the path of a row; raises `UserError`, whose message starts with `line`, if empty."""
    if not path:
        raise UserError(f"{line}: the path is empty")
    return path


def check_source(source: str, line: str) -> None:
    """Raises `UserError`, whose message starts with `line`, if a source is not UTF-8."""
    if any("\ud800" <= letter <= "\udfff" for letter in source):
        raise UserError(f"{line}: the source {source!a} is not UTF-8: save the file as UTF-8")
