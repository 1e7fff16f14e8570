"""Reads the lists of Kinetics, Something-Something v2, HMDB51 and UCF101."""

import json
import os
import re
from pathlib import Path

from invnext_jax.data.columns import refuse_ranges, refuse_segments
from invnext_jax.errors import UserError
from invnext_jax.video_lists import class_ids, text_tables
from invnext_jax.video_lists.text_tables import Table, parse_seconds
from invnext_jax.video_lists.video_files import FileFinder, check_names, describe_problem, locate
from invnext_jax.video_lists.video_list import ListOptions, VideoEntry, VideoList

HMDB51_FILE = re.compile(r"(?P<name>.+)_test_split(?P<fold>\d)\.txt")
_HMDB51_SPLITS = {"train": ("1",), "test": ("2",), "all": ("1", "2")}  # 0 means not used
_UCF101_LINE = re.compile(
    # The folder HandstandPushups has files named v_HandStandPushups_*.
    r"(?P<file>(?:.*/)?(?P<name>\w+)/v_(?i:(?P=name))_g\d+_c\d+\.avi)(?:\s+(?P<label>\d+))?"
)


def refuse_split(path: Path, options: ListOptions) -> None:
    """Raises a `UserError` if the options specify a split of a list without splits."""
    if options.split not in ("", "all"):
        raise UserError(f"--split={options.split}: {path} has no splits; remove the flag")


def select_split(path: Path, table: Table, options: ListOptions) -> Table:
    """Returns the rows of the split that the options specify.

    Raises:
      UserError: The table has several splits and the options specify none of them.
    """
    column = text_tables.find_column(table.columns, ("split", "subset"))
    if column is None:
        refuse_split(path, options)
    if column is None or options.split == "all":
        return table
    found = dict.fromkeys((row[column] or "").strip() for _, row in table.rows)
    if not options.split and len(found) < 2:
        return table
    if options.split not in found:
        raise UserError(
            f"list {path} has the splits {', '.join(map(repr, found))} in the column {column!r}: "
            "select one with --split, or all of them with --split=all"
        )
    rows = [(n, row) for n, row in table.rows if (row[column] or "").strip() == options.split]
    return Table(table.columns, rows)


def read_kinetics(path: Path, table: Table, options: ListOptions) -> VideoList:
    """Reads a CSV list of Kinetics, with the columns youtube_id, label, time_start, time_end.

    In HACS Clips, these are called youtube_id, classname, start and end. Its column `label` is -1
    for clips that do not show the class.
    """
    rows = select_split(path, table, options).rows
    find = lambda *names: text_tables.find_column(table.columns, names)  # noqa: E731
    label_column, start_column = find("classname", "label"), find("time_start", "start")
    end_column = find("time_end", "end")
    ranges = {"start": start_column, "end": end_column}
    read = [name for name, column in ranges.items() if column]
    refuse_ranges(f"list {path}", table.columns, read)
    is_hacs = label_column is not None and label_column.lower() == "classname"
    negative = ("-1",) if is_hacs else ()
    texts = ["" if row.get("label") in negative else row.get(label_column) for _, row in rows]
    places = [f"list {path}, line {line}" for line, _ in rows]
    names = [class_ids.normalize(t or "", p) for t, p in zip(texts, places, strict=True)]
    ids, ids_file = class_ids.assign(names, options, path)
    files = FileFinder(options.videos or path.parent)
    source = options.source or ("hacs" if is_hacs else "kinetics")
    entries = []
    for where, (_, row), class_name in zip(places, rows, names, strict=True):
        name = row["youtube_id"] or ""
        start = parse_seconds(row.get(start_column), f"{where}, {start_column}")
        end = parse_seconds(row.get(end_column), f"{where}, {end_column}")
        labels = class_ids.make_labels(ids, class_name, options.task)
        stems = [name, f"v_{name}"]  # the second one is that of ActivityNet
        if start is not None and end is not None:  # file names used by common download scripts
            times = int(start), int(end)
            trimmed = ["{}_{:06d}_{:06d}".format(name, *times), "{}_{}_{}".format(name, *times)]
            # In HACS, windows may begin and end at fractions of a second.
            stems = trimmed * (times == (start, end)) + stems
        trimmed = files.find(stems[:-2], class_name)
        found = trimmed or files.find(stems[-2:], class_name)
        if problem := describe_problem(found, stems[:-1]):
            missing = os.path.join(files.folder, stems[0])
            entries.append(VideoEntry(missing, source, labels=labels, problem=problem))
        elif trimmed:
            entries.append(VideoEntry(*trimmed, source, labels=labels))
        else:
            may_be_trimmed = start is not None and end is not None
            entries.append(VideoEntry(*found, source, start, end, labels, "", may_be_trimmed))
    return VideoList(entries, ids, ids_file)


def read_ssv2(path: Path, text: str, options: ListOptions) -> VideoList:
    """Reads train.json, validation.json or test.json of Something-Something v2."""
    refuse_split(path, options)
    try:
        rows = json.loads(text)
        names = [str(row["id"]) for row in rows]
        # The templates have placeholders in brackets; labels.json has no brackets.
        class_names = [re.sub(r"[\[\]]", "", row.get("template") or "") for row in rows]
        "".join((*names, *class_names)).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"list {path} does not have the format of Something-Something: it must be a JSON list "
            "of objects with an id, in UTF-8"
        ) from error
    check_names(names, f"list {path}", "id")
    for row in rows:
        refuse_segments(f"list {path}", row)
    labels_path = path.with_name("labels.json")
    ids, ids_file = class_ids.assign(
        class_names, options, path, labels_path if os.path.isfile(labels_path) else None
    )
    files = FileFinder(options.videos or path.parent)
    source = options.source or "ssv2"
    entries = [
        find_entry(files, name, class_name, source, ids, options.task)
        for name, class_name in zip(names, class_names, strict=True)
    ]
    return VideoList(entries, ids, ids_file)


def find_entry(
    files: FileFinder,
    name: str,
    class_name: str,
    source: str,
    ids: dict[str, int] | None,
    task: str,
) -> VideoEntry:
    """Returns the entry of the file with a name without extension, or the problem of finding it.

    Args:
      files: Files of the data set.
      name: Name without extension.
      class_name: Class of the video, or "".
      source: Name of the data set.
      ids: Class ids by name; None without classes.
      task: Name of the classification task.
    """
    labels = class_ids.make_labels(ids, class_name, task)
    found = files.find([name], class_name)
    problem = describe_problem(found, [name])
    file = os.path.join(files.folder, name) if problem else found[0]
    return VideoEntry(file, source, labels=labels, problem=problem)


def is_hmdb51(path: Path) -> bool:
    """Returns whether `path` is a split file of HMDB51 or a folder of such files."""
    if os.path.isdir(path):
        return any(HMDB51_FILE.fullmatch(name) for name in os.listdir(path))
    return HMDB51_FILE.fullmatch(path.name) is not None and any(
        _split_hmdb51(line) for line in text_tables.split_lines(text_tables.read_text(path))
    )


def _split_hmdb51(line: str) -> tuple[str, str] | None:
    """Returns the name and the digit of a line, or None if it has another format."""
    name, *split = line.strip().rsplit(maxsplit=1)[:2] or [""]
    return (name, split[0]) if split and split[0] in ("0", "1", "2") else None


def read_hmdb51(path: Path, options: ListOptions) -> VideoList:
    """Reads the split files <class>_test_split<fold>.txt of HMDB51.

    A line is `name 1` (training) or `name 2` (test).

    All classes in the folder get an id, even if `path` is the file of one class.
    """
    split = _HMDB51_SPLITS.get(options.split)
    if split is None:
        raise UserError(
            f"{path} contains training and test videos of HMDB51: set --split=train, --split=test "
            "or --split=all"
        )
    match = None if os.path.isdir(path) else HMDB51_FILE.fullmatch(path.name)
    folder, fold = (path.parent, match["fold"]) if match else (path, str(options.fold))
    found = (HMDB51_FILE.fullmatch(name) for name in sorted(os.listdir(folder)))
    lists = {m["name"]: folder / m[0] for m in found if m and m["fold"] == fold}
    if not lists:
        raise UserError(
            f"{folder} has no files for split {fold} of HMDB51: set --fold to another split"
        )
    ids, ids_file = class_ids.assign(lists, options, path)
    files, entries = FileFinder(options.videos or folder), []
    for name, file in {match["name"]: path}.items() if match else lists.items():
        for number, line in enumerate(text_tables.split_lines(text_tables.read_text(file)), 1):
            if not line.strip():
                continue
            row = _split_hmdb51(line)
            if row is None:
                raise UserError(
                    f"list {file}, line {number}: {line!r} must be a name and 0, 1 or 2"
                )
            if row[1] in split:
                stem = os.path.splitext(row[0])[0]
                source = options.source or "hmdb51"
                entries.append(find_entry(files, stem, name, source, ids, options.task))
    return VideoList(entries, ids, ids_file)


def read_ucf101(path: Path, text: str, options: ListOptions) -> VideoList | None:
    """Reads a trainlist or testlist of UCF101; returns None if the list has another format.

    The folder of a video is its class. The training list also contains class numbers, which must be
    consistent with the folders. The ids are the numbers in classInd.txt minus one if this file is
    in the same folder; otherwise they are assigned in alphabetical order.
    """
    lines = [line.strip() for line in text_tables.split_lines(text) if line.strip()]
    rows = [_UCF101_LINE.fullmatch(line.replace("\\", "/")) for line in lines]
    if not rows or not all(rows):
        return None
    refuse_split(path, options)
    numbers = {}
    for row in rows:
        if row["label"] and numbers.setdefault(row["name"], row["label"]) != row["label"]:
            raise UserError(
                f"in list {path}, the class {row['name']!r} has the numbers {numbers[row['name']]} "
                f"and {row['label']}: correct the list"
            )
    index = path.with_name("classInd.txt")
    known = _read_class_index(index) if os.path.isfile(index) else None
    names = [row["name"] for row in rows]
    if known and not options.classes and set(names) <= known.keys():
        ids, ids_file = known, str(index)
    else:
        ids, ids_file = class_ids.assign(names, options, path)
    folder = os.path.abspath(options.videos or path.parent)
    entries = [
        VideoEntry(
            locate(folder, row["file"], f"list {path}, entry {number}"),
            options.source or "ucf101",
            labels=class_ids.make_labels(ids, row["name"], options.task),
        )
        for number, row in enumerate(rows, start=1)
    ]
    note = "labels: the folder of each video is its class; class ids start at 0"
    return VideoList(entries, ids, ids_file, (note,))


def _read_class_index(path: Path) -> dict[str, int]:
    """Reads lines of the form `1 ApplyEyeMakeup`. The returned ids start at 0."""
    ids = {}
    for number, line in enumerate(text_tables.split_lines(text_tables.read_text(path)), start=1):
        if line.strip():
            match = re.fullmatch(r"(\d{1,9})\s+(\w{1,1000})", line.strip())
            if not match:
                raise UserError(f"{path}, line {number}: {line!r} must be a number and a class")
            ids[match[2]] = int(match[1]) - 1
    return ids
