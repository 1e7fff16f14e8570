"""Assigns class ids to the class names in lists, so that a class has the same id in all splits."""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from invnext_jax.data import class_names
from invnext_jax.data import columns as columns_lib
from invnext_jax.errors import UserError
from invnext_jax.video_lists import text_tables
from invnext_jax.video_lists.text_tables import Table
from invnext_jax.video_lists.video_list import NO_LABEL, ListOptions, VideoList

# Columns that contain the names of classes if another column has their numbers.
NAME_COLUMNS = ("label", "class", "class_name", "label_name", "action", "category")
ALPHABETICAL = "alphabetical"  # value of --classes
_SEVERAL_NUMBERS = re.compile(r"[\s(\[{]*-?\d+(?:\.0*)?(?:[\s,;|]+-?\d+(?:\.0*)?)+[\s)\]}]*")


def normalize(name: str, where: str) -> str:
    """Normalizes a class name. Names that are not valid UTF-8 are read as Windows-1252.

    Args:
      name: The name.
      where: Place of the name, for the message.

    Raises:
      UserError: The name is too long. The time of Unicode normalization is quadratic.
    """
    check_length(name, where)
    if not name.isascii():
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            name = name.encode(errors="surrogateescape").decode("cp1252", errors="replace")
        name = unicodedata.normalize("NFC", name)
    return name.strip()


def check_length(name: str, where: str) -> None:
    """Raises `UserError` if a class name has more than `class_names.MAX_NAME` characters."""
    if len(name) > class_names.MAX_NAME:
        raise UserError(
            f"{where}: the class name {name[:20]!a}... has {len(name):,} characters, more than "
            f"{class_names.MAX_NAME:,}: shorten it"
        )


def refuse_lists(names: Iterable[str], path: Path) -> None:
    """Raises `UserError` if all names are several numbers, such as "1,2": lists of labels."""
    names = list(names)
    if names and all(map(_SEVERAL_NUMBERS.fullmatch, names)):
        raise UserError(
            f"list {path}: {names[0]!a} is a list of labels, but a video has one label: keep one, "
            "or use a column label_<task> for each"
        )


def assign(
    names: Iterable[str], options: ListOptions, path: Path, default_file: Path | None = None
) -> tuple[dict[str, int] | None, str]:
    """Assigns an id to each class name.

    Args:
      names: Class name of each video, or "" for a video without a class.
      options: Options of the list; `classes` is the file that defines the ids.
      path: Path of the list, for error messages.
      default_file: File that defines the ids if the options do not specify one.

    Returns:
      A dict from name to id, or None if no video has a class; and the file that defines the ids,
      or "".

    Raises:
      UserError: The file cannot be read, a name is missing in it or is too long, or all names are
        several numbers.
    """
    used = sorted(set(names) - {""})
    for name in used:
        check_length(name, f"list {path}")
    if not used:
        return None, ""
    refuse_lists(used, path)
    file = "" if options.classes == ALPHABETICAL else options.classes or str(default_file or "")
    if not file:
        return {name: number for number, name in enumerate(used)}, ""
    ids = _read_file(file, f"label_{options.task}")
    unknown = [name for name in used if name not in ids]
    if unknown:
        raise UserError(f"class {unknown[0]!r} of {path} is not in {file}: add it there")
    return ids, file


def number_labels(texts: list[str], where: list[str], path: Path, options: ListOptions):
    """Returns the labels of texts, the class ids and the file that defines them.

    The texts must be all numbers or all names.
    """
    is_number = [_is_label(text) for text in texts]
    if all(is_number):
        return list(map(text_tables.parse_label, texts, where)), None, ""
    numbers = [
        i for i, text in enumerate(texts) if is_number[i] and columns_lib.parse_label(text) >= 0
    ]
    if numbers:
        refuse_lists([text for text in texts if not _is_label(text)], path)
        name = texts[is_number.index(False)]
        raise UserError(
            f"{where[numbers[0]]}: {texts[numbers[0]]!r} is a number, but {name!r} is a class "
            "name: use only numbers or only names"
        )
    names = ["" if _is_label(text) else text for text in texts]
    names = list(map(normalize, names, where))
    ids, ids_file = assign(names, options, path)
    return [ids[name] if name else NO_LABEL for name in names], ids, ids_file


def _is_label(text: str) -> bool:
    try:
        columns_lib.parse_label(text)
    except ValueError:
        return False
    return True


def _read_file(path: str, column: str) -> dict[str, int]:
    try:
        ids = class_names.read_class_names(path, column)
        return {normalize(name, path): number for name, number in ids.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--classes={path} cannot be read: {error}") from error


def find_names(
    table: Table, column: str | None, labels: Sequence[int | None]
) -> tuple[str | None, dict[str, int] | None]:
    """Finds the column with the class names of numeric labels: each number has one name.

    Args:
      table: The table.
      column: The column with the numbers; None if there is none.
      labels: The numbers.

    Returns:
      The name of the column, and the class ids by name; (None, None) if there is no such column.
    """
    for other in table.columns if column else ():
        if other == column or other.lower() not in NAME_COLUMNS:
            continue
        texts = ((row[other] or "").strip() for _, row in table.rows)
        pairs = {(text, n) for text, n in zip(texts, labels, strict=True) if n != NO_LABEL}
        ids = {normalize(text, f"column {other}"): number for text, number in pairs}
        are_names = all(ids) and not all(re.fullmatch(r"-?[\d.]+", name) for name in ids)
        if ids and are_names and len(pairs) == len(ids) == len(set(ids.values())):
            return other, dict(sorted(ids.items(), key=lambda pair: pair[1]))
    return None, None


def make_labels(ids: dict[str, int] | None, name: str, task: str) -> dict[str, int]:
    """Returns the label column of a video whose class is `name`, or "" if it has no class."""
    return {f"label_{task}": ids[name] if name else NO_LABEL} if ids else {}


def renumber(videos: VideoList, column: str, ids: dict[str, int], file: str = "") -> VideoList:
    """Returns the list with new class ids. `ids` must contain all class names that are used.

    Raises:
      UserError: A label of the list has no class name.
    """
    new_ids = {number: ids[name] for name, number in videos.classes.items() if name in ids}
    used = {entry.labels.get(column, NO_LABEL) for entry in videos.entries} - {NO_LABEL}
    if unknown := sorted(used - new_ids.keys()):
        where = videos.classes_file or "the class names of the list"
        raise UserError(f"the label {unknown[0]} has no name in {where}: add its name")
    entries = [
        dataclasses.replace(entry, labels={**entry.labels, column: new_ids[entry.labels[column]]})
        if entry.labels.get(column, NO_LABEL) != NO_LABEL
        else entry
        for entry in videos.entries
    ]
    return dataclasses.replace(
        videos, entries=entries, classes=ids, classes_file=file or videos.classes_file
    )


def describe_similar_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns a warning if names of different classes are equal up to case and word separators."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        key = re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
        spellings.setdefault(key, []).append(name)
    similar = [group for group in spellings.values() if len(group) > 1]
    if not similar:
        return ()
    others = f", and {len(similar) - 1} more such groups" if len(similar) > 1 else ""
    return (
        f"warning: the class names {' and '.join(map(repr, similar[0]))} are different classes"
        f"{others}: if they mean the same class, use one spelling",
    )


def match_neighbors(videos: VideoList, options: ListOptions, out: Path) -> VideoList:
    """Reuses the class ids of other manifests in the folder of `out`.

    Otherwise the ids of two splits would differ if a class occurs in only one of them.

    Raises:
      UserError: The ids of another manifest contradict those of the list or of a third manifest,
          or cover only some of the classes.
    """
    if videos.classes is None or options.classes:
        return videos
    own, column = Path(class_names.class_names_path(out)), f"label_{options.task}"
    files = sorted(out.parent.glob(f"*{class_names.CLASS_NAMES_SUFFIX}"))
    others = [os.fspath(file) for file in files if file.name != own.name]
    by_column = {file: class_names.read_optional_file(file) for file in others}
    found = {file: ids.get("", ids.get(column, {})) for file, ids in by_column.items()}
    shared = {file: ids for file, ids in found.items() if not videos.classes.keys().isdisjoint(ids)}
    complete = {f: ids for f, ids in shared.items() if videos.classes.keys() <= ids.keys()}
    cure = (
        "set --classes=FILE with the numbers of all names, or --classes=alphabetical to number "
        "this list independently"
    )
    if complete and not videos.classes_file:
        (file, ids), *others = complete.items()
        for other, other_ids in others:
            if conflict := class_names.describe_class_conflict(ids, other_ids):
                raise UserError(f"{file} and {other} number the classes differently: {cure}")
        note = (
            f"class ids are those of {file}, which has all classes of this list "
            "(--classes=alphabetical numbers this list independently)"
        )
        videos = renumber(videos, column, ids, file)
        return dataclasses.replace(videos, notes=(*videos.notes, note))
    for file, ids in shared.items():
        if conflict := class_names.describe_class_conflict(ids, videos.classes):
            raise UserError(f"{file} and this list number classes differently ({conflict}): {cure}")
    return videos


def join(lists: Sequence[VideoList], names: Sequence[str], options: ListOptions) -> VideoList:
    """Concatenates lists. Lists without a file that defines their ids are numbered together.

    Raises:
      UserError: Two lists have class ids from files that contradict each other.
    """
    column = f"label_{options.task}"
    ids, file, file_name = {}, "", ""
    for videos, name in zip(lists, names, strict=True):
        if videos.classes and videos.classes_file:
            if conflict := class_names.describe_class_conflict(ids, videos.classes):
                raise UserError(
                    f"{file_name} and {name} number classes differently ({conflict}): index one of "
                    "them again with another --task or with --classes"
                )
            ids, file, file_name = {**ids, **videos.classes}, videos.classes_file, name
    numbered = [videos for videos in lists if videos.classes and not videos.classes_file]
    new = sorted({name for videos in numbered for name in videos.classes} - ids.keys())
    if ids and new:
        raise UserError(
            f"class {new[0]!r} is not in {file}: set --classes=FILE with the numbers of all names"
        )
    ids |= {name: number for number, name in enumerate(new)}
    joined = [renumber(videos, column, ids) if videos.classes else videos for videos in lists]
    notes = [note for videos in joined for note in videos.notes]
    plain = [
        name
        for videos, name in zip(joined, names, strict=True)
        if not videos.classes and any(column in entry.labels for entry in videos.entries)
    ]
    if ids and plain:
        notes.append(f"{plain[0]} has class numbers without names, which are kept as they are")
    entries = [entry for videos in joined for entry in videos.entries]
    return VideoList(entries, ids or None, file, tuple(dict.fromkeys(notes)))
