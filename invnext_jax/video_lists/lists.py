"""Reads lists of videos in the published formats of common data sets.

Formats: a folder; this package's manifests and tables with similar headers; Kinetics' CSV (label,
youtube_id, time_start, time_end, split); lines of `path label` or `path,label`, as in VideoMAE and
MMAction; the JSON lists of Something-Something v2 with labels.json in the same folder; JSON lists
of captions; and the lists of HACS, Moments in Time, HMDB51 and UCF101.
"""

import csv
import dataclasses
import os
import re
from pathlib import Path

from invnext_jax import regular_file
from invnext_jax.data import class_names, manifest
from invnext_jax.data import columns as columns_lib
from invnext_jax.errors import UserError
from invnext_jax.video_lists import caption_lists, class_ids, published_lists, text_tables
from invnext_jax.video_lists.folder_scan import VIDEO_EXTENSIONS, scan_folder
from invnext_jax.video_lists.text_tables import Table
from invnext_jax.video_lists.video_files import FileFinder, describe_problem, locate
from invnext_jax.video_lists.video_list import NO_LABEL, ListOptions, VideoEntry, VideoList

# Possible names of columns, in upper or lower case. The first one that a list has is used.
PATH_COLUMNS = (
    *("path", "video_path", "filepath", "file_path", "file", "filename", "file_name", "video"),
    *("video_name", "video_file", "videos", "clip", "clip_path", "clip_name", "name"),
)
ID_COLUMNS = ("video_id", "videoid", "vid", "id", "youtube_id")  # file names without extension
LABEL_COLUMNS = (
    *class_ids.NAME_COLUMNS,
    *("label_id", "class_id", "class_index", "label_index", "target"),
)
SOURCE_COLUMNS = ("source", "dataset")
START_COLUMNS = ("start", "time_start", "start_time", "start_sec")
END_COLUMNS = ("end", "time_end", "end_time", "end_sec")
# Columns of manifests that `index` recomputes.
PROBED_COLUMNS = {"record", *columns_lib.INFORMATIVE}


def read_lists(names: str | os.PathLike, options: ListOptions) -> VideoList:
    """Reads one or more folders or lists, separated by commas; see `read_list`.

    Raises:
      UserError: As in `read_list`, or two lists use contradictory class ids.
    """
    parts = manifest.split_names(os.fspath(names))
    videos = [read_list(part, options) for part in parts]
    return videos[0] if len(videos) == 1 else class_ids.join(videos, parts, options)


def read_list(list_path: str | os.PathLike, options: ListOptions) -> VideoList:
    """Reads a folder or a list. The format is determined by the file name and the first line.

    Raises:
      UserError: The file is missing, empty or invalid, or its format is unknown.
    """
    path = Path(list_path)
    if options.videos and not os.path.isdir(options.videos):
        raise UserError(f"the folder {options.videos!r} of videos does not exist: set --videos")
    if not os.path.exists(path):
        missing = regular_file.describe_missing(path)
        raise UserError(f"the folder or list {str(list_path)!r} {missing}: correct the path")
    if published_lists.is_hmdb51(path):
        videos = published_lists.read_hmdb51(path, options)
    elif os.path.isdir(path):
        videos = _read_folder(path, options)
    else:
        videos = _read_text(path, text_tables.read_text(path), options)
    if not videos.entries:
        raise UserError(f"list {path} contains no videos")
    return videos


def _read_text(path: Path, text: str, options: ListOptions) -> VideoList:
    if path.suffix in (".json", ".jsonl"):
        captioned = caption_lists.read_captioned(path, text, options)
        return captioned or published_lists.read_ssv2(path, text, options)
    if table := text_tables.read_table(path, text, (*PATH_COLUMNS, *ID_COLUMNS)):
        if "youtube_id" in table.columns:
            return published_lists.read_kinetics(path, table, options)
        return _read_table(path, table, options)
    ucf101 = published_lists.read_ucf101(path, text, options)
    return ucf101 or _read_pairs(path, text, options)


def _read_folder(path: Path, options: ListOptions) -> VideoList:
    source = options.source or os.path.basename(os.path.realpath(path))
    published_lists.refuse_split(path, options)
    scan = scan_folder(path)
    if not scan.videos:
        raise UserError(f"folder {path} contains no videos ({' '.join(VIDEO_EXTENSIONS)})")
    entries = [VideoEntry(video, source) for video in scan.videos]
    return VideoList(entries, notes=tuple(scan.describe()))


def _read_table(path: Path, table: Table, options: ListOptions) -> VideoList:
    """Reads a manifest, or a table with other column names."""
    table = published_lists.select_split(path, table, options)
    find = lambda names: text_tables.find_column(table.columns, names)  # noqa: E731
    path_column, source_column = find((*PATH_COLUMNS, *ID_COLUMNS)), find(SOURCE_COLUMNS)
    start_column, end_column = find(START_COLUMNS), find(END_COLUMNS)
    duration = find(("duration",)) if start_column and not end_column else None
    ranges = {"start": start_column, "end": end_column or duration}
    read = [name for name, column in ranges.items() if column]
    columns_lib.refuse_ranges(f"list {path}", table.columns, read)
    if path_column == "path" and source_column is None and not options.source:
        raise UserError(f"list {path} has no column 'source': add it, or set --source")
    label_columns = [name for name in table.columns if name.startswith(manifest.LABEL_PREFIX)]
    column = f"{manifest.LABEL_PREFIX}{options.task}"
    named = find([name for name in LABEL_COLUMNS if name not in label_columns])
    named = named if column not in label_columns else None
    labels, ids, ids_file = _read_label_column(path, table, named, options)
    name_column, ids = (None, ids) if ids else class_ids.find_names(table, named, labels)
    ids_file = os.fspath(path) if name_column else ids_file
    files = (
        None if path_column.lower() in PATH_COLUMNS else FileFinder(options.videos or path.parent)
    )
    folder = os.path.abspath(options.videos or path.parent)
    entries = []
    for (line, row), label in zip(table.rows, labels, strict=True):
        where = f"list {path}, line {line}"
        file, problem = _find_file(row, (path_column, named), folder, files, where)
        start = text_tables.parse_seconds(row.get(start_column), f"{where}, {start_column}")
        end = text_tables.parse_seconds(row.get(end_column), f"{where}, {end_column}")
        if duration:
            seconds = text_tables.parse_seconds(row.get(duration), f"{where}, {duration}")
            end = None if seconds is None else (start or 0.0) + seconds
        own = {n: text_tables.parse_label(row[n], f"{where}, {n}") for n in label_columns}
        source = (row.get(source_column) or "").strip() if source_column else path.stem
        own |= {} if label is None else {column: label}
        entries.append(VideoEntry(file, options.source or source, start, end, own, problem))
    used = {
        path_column,
        source_column,
        start_column,
        end_column,
        named,
        name_column,
        *label_columns,
    }
    used |= {"split", "subset"}
    notes = [f"labels: the column {named!r} is read as {column}"] if named else []
    notes += [f"class names: the column {name_column!r}"] if name_column else []
    if duration:
        notes.append(f"clips end at {start_column!r} + {duration!r}, in seconds")
    if ignored := [c for c in table.columns if c and c not in used | PROBED_COLUMNS]:
        notes.append(f"columns that are not read: {', '.join(ignored)}")
    videos = VideoList(entries, ids, ids_file, tuple(notes))
    return _add_class_names(videos, path, label_columns, options)


def _add_class_names(
    videos: VideoList, path: Path, label_columns: list[str], options: ListOptions
) -> VideoList:
    """Adds the class names stored next to a manifest, if the list has none.

    `--classes` overrides their ids.
    """
    notes, column = [*videos.notes], f"{manifest.LABEL_PREFIX}{options.task}"
    found = class_names.read_manifest_classes(path, label_columns, notes)
    file = class_names.class_names_path(path)
    others = " and ".join(sorted(found.keys() - {column}))
    notes += [f"{file}: names of {others} are not read: set --task to read them"] if others else []
    videos = dataclasses.replace(videos, notes=tuple(notes))
    if videos.classes is None and column in found:
        ids = {class_ids.normalize(name, file): number for name, number in found[column].items()}
        videos = dataclasses.replace(videos, classes=ids, classes_file=file)
    elif videos.classes_file != os.fspath(path):
        return videos
    ids = videos.classes
    if not options.classes:
        return videos
    return class_ids.renumber(videos, column, *class_ids.assign(ids, options, path))


def _find_file(row, columns: tuple[str, str | None], folder, files: FileFinder | None, where: str):
    """Returns the path of a row's video, and the reason why it is not found, or "".

    `columns` has the names of the column with the video and of that with the class, if any.
    """
    name, class_name = (row[column] or "" if column else "" for column in columns)
    if not name.strip():
        raise UserError(f"{where}: the path is empty")
    if row.get("record"):
        raise UserError(
            f"{where} is a record of a shard: train on this manifest directly, or give the list "
            "from which the shards were made"
        )
    if "://" in name:
        raise UserError(f"{where}: {name} is remote: train on this manifest directly")
    if files is None or name.lower().endswith(VIDEO_EXTENSIONS):
        return locate(folder, name, where), ""
    found = files.find([name.strip()], class_name.strip())
    problem = describe_problem(found, [name])
    return (os.path.join(folder, name) if problem else found[0]), problem


def _read_label_column(path: Path, table: Table, column: str | None, options: ListOptions):
    """Returns the label of each row, the class ids and the file that defines them.

    Labels are None without a label column.
    """
    if column is None:
        return [None] * len(table.rows), None, ""
    texts = [(row[column] or "").strip() for _, row in table.rows]
    where = [f"list {path}, line {line}, {column}" for line, _ in table.rows]
    return class_ids.number_labels(texts, where, path, options)


_NUMBER = re.compile(r"-?\d+(?:\.0*)?")
_EXTENSION = "|".join(map(re.escape, VIDEO_EXTENSIONS))
_NAMED = re.compile(
    rf'^(?P<path>.+?(?:{_EXTENSION})"?)(?P<separator>\s*[,;]\s*|\s+)(?P<label>\S.*)$', re.IGNORECASE
)


def _read_pairs(path: Path, text: str, options: ListOptions) -> VideoList:
    """Reads lines of the form `path label`, `path,label` or `path`.

    The label is a class name or a number, where -1 means no label.
    """
    folder = os.path.abspath(options.videos or path.parent)
    source = options.source or path.stem
    published_lists.refuse_split(path, options)
    files, labels, where = [], [], []
    for number, line in enumerate(text_tables.split_lines(text), start=1):
        line = line.strip()
        if not line or (line.startswith("#") and not _split_pair(line)):
            continue
        pair = _split_pair(line)
        if pair is None:
            name, _ = _split_number(line) or (line, "")
            raise UserError(
                f"list {path}, line {number}: {name!r} has no video extension; a line must be a "
                "path and a label (folders of frames are not supported), or the first line must "
                "be a header with the columns path, source, label"
            )
        where.append(f"list {path}, line {number}")
        files.append(locate(folder, pair[0], where[-1]))
        labels.append(pair[1])
    ids_of_rows, ids, ids_file = class_ids.number_labels(labels, where, path, options)
    has_labels = any(label != NO_LABEL for label in ids_of_rows)
    column = f"{manifest.LABEL_PREFIX}{options.task}"
    entries = [
        VideoEntry(file, source, labels={column: label} if has_labels else {})
        for file, label in zip(files, ids_of_rows, strict=True)
    ]
    return VideoList(entries, ids, ids_file)


def _split_number(line: str) -> tuple[str, str] | None:
    """Returns the text before the number at the end of a line, and the number; None without one.

    They are separated by spaces, a comma or a semicolon. The time is linear in the length.
    """
    label = re.split(r"[\s,;]", line)[-1]
    if not _NUMBER.fullmatch(label):
        return None
    start = line.removesuffix(label)
    name = start.rstrip()
    if name.endswith((",", ";")):
        name = name[:-1].rstrip()
    return (name, label) if name and name != start else None


def _split_pair(line: str) -> tuple[str, str] | None:
    """Returns the path and the label of a line, or None if its path has no video extension."""
    name, label = _split_number(line) or (line, "")
    # VideoMAE v2 lists unlabeled videos as `path,0,-1` (folders of frames: `path,count,-1`).
    if label == "-1" and (start := _split_number(name)) and start[1] == "0":
        name = start[0]
    if name.strip('"').lower().endswith(VIDEO_EXTENSIONS):
        return name.strip('"'), label
    named = _NAMED.match(line)
    # A path followed by several numbers is the format of a different tool.
    if named is None or re.fullmatch(r"[-\d.,;\s]+", named["label"]):
        return None
    label, *others = next(csv.reader([named["label"]], delimiter=named["separator"].strip() or ","))
    if named["separator"].strip() and others:  # Moments in Time: path,class,votes,votes
        return (named["path"].strip('"'), label) if all(map(str.isdecimal, others)) else None
    return named["path"].strip('"'), named["label"].strip('"')
