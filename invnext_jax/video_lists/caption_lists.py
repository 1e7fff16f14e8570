"""Reads lists of captions, which are also files of captions for evaluations."""

import functools
import json
import os
from pathlib import Path
from typing import Any

from invnext_jax.data.columns import MAX_LISTED, refuse_segments
from invnext_jax.errors import UserError
from invnext_jax.video_lists import text_tables
from invnext_jax.video_lists.folder_scan import VIDEO_EXTENSIONS
from invnext_jax.video_lists.published_lists import find_entry, refuse_split
from invnext_jax.video_lists.video_files import FileFinder, check_names, locate
from invnext_jax.video_lists.video_list import ListOptions, VideoEntry, VideoList

CAPTION_FIELDS = {"video", "caption", "answer"}  # read here or by evaluations
MAX_LINE = 2**22  # maximum number of characters of a line of JSON


def read_captioned(path: Path, text: str, options: ListOptions) -> VideoList | None:
    """Reads a JSON list of objects with `video` and `caption`, or one object per line (.jsonl).

    Captions are not part of a manifest: evaluations read them from the same file. A video with
    several captions is listed once. Returns None if the objects of a JSON list have no `video`.
    """
    try:
        names, fields = _read_names(path, text)
    except (ValueError, TypeError, RecursionError):
        names = []
    if not names and path.suffix == ".jsonl":
        raise UserError(
            f'list {path} must have one JSON object with "video" per line, of at most {MAX_LINE} '
            "characters: correct it"
        )
    if not names:
        return None
    refuse_split(path, options)
    refuse_segments(f"list {path}", fields)
    check_names(names, f"list {path}", "video")
    folder, source = os.path.abspath(options.videos or path.parent), options.source or path.stem
    finder = functools.cache(lambda: FileFinder(folder))  # only if a name has no extension
    entries = [
        VideoEntry(locate(folder, name, f"list {path}"), source)
        if name.lower().endswith(VIDEO_EXTENSIONS)
        else find_entry(finder(), name, "", source, None, options.task)
        for name in dict.fromkeys(names)
    ]
    repeated = len(names) - len(entries)
    notes = [f"{repeated} further captions of the same videos"] if repeated else []
    if unread := sorted(fields.keys() - CAPTION_FIELDS):
        notes.append(f"fields that are not read: {', '.join(map(ascii, unread[:MAX_LISTED]))}")
    return VideoList(entries, notes=tuple(notes))


def _read_names(path: Path, text: str) -> tuple[list[Any], dict[str, Any]]:
    """Returns `video` of each object of a JSON list or of JSON lines, and a value of each field.

    Raises:
      ValueError, TypeError, RecursionError: The text has another format.
    """
    lines = filter(str.strip, text_tables.split_lines(text))
    names, fields = [], {}
    for row in map(_parse_line, lines) if path.suffix == ".jsonl" else json.loads(text):
        if not isinstance(row, dict) or (not names and "video" not in row):
            raise ValueError('not an object with "video"')
        names.append(row.get("video"))
        fields |= {name: value for name, value in row.items() if value is not None}
    return names, fields


def _parse_line(line: str) -> Any:
    if len(line) > MAX_LINE:
        raise ValueError(f"the line has more than {MAX_LINE} characters")
    return json.loads(line)
