"""Reads lists of videos in the published formats of common data sets.

Formats: a folder; this package's manifests; Kinetics' CSV (label, youtube_id, time_start, time_end,
split); lines of `path label` or `path,label`, as in VideoMAE and MMAction; and the JSON lists of
Something-Something v2 with labels.json in the same folder.
"""

import collections
import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from invnext_jax.errors import UserError

VIDEO_EXTENSIONS = tuple(
    ".mp4 .webm .mkv .avi .mov .m4v .mpg .mpeg .ts .m2ts .wmv .flv .ogv .3gp .vob".split()
)
NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class VideoEntry:
    """One video of a list.

    Attributes:
        path: Absolute path of the file, or the path that was searched if the file is missing.
        source: Name of the data set.
        start: Start in seconds. None is the beginning.
        end: End in seconds. None is the end.
        labels: `label_<task>` -> class id.
        problem: Reason why the file is missing, or "" if it exists.
        may_be_trimmed: Whether the file may contain only the seconds from `start` to `end`.
    """

    path: str
    source: str
    start: float | None = None
    end: float | None = None
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    problem: str = ""
    may_be_trimmed: bool = False


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Options for reading a list.

    Attributes:
        videos: Folder of the files. "" is the folder of the list.
        source: Name of the data set. "" derives it from the list.
        task: Name of the classification task; its labels form the column `label_<task>`.
        classes: File of class names, JSON or one per line, that defines the class ids. "" numbers
            the class names of the list in alphabetical order.
    """

    videos: str = ""
    source: str = ""
    task: str = "class"
    classes: str = ""


@dataclasses.dataclass(frozen=True)
class VideoList:
    """Entries in the order of the list, and the class id of each class name if there are any."""

    entries: list[VideoEntry]
    classes: dict[str, int] | None = None


def read_list(list_path: str | os.PathLike, options: ListOptions) -> VideoList:
    """Reads a folder or a list. The format is determined by the file name and the first line.

    Raises:
        UserError: The file is missing, empty or invalid, or its format is unknown.
    """
    path = Path(list_path)
    if options.videos and not Path(options.videos).is_dir():
        raise UserError(f"the folder {options.videos!r} of videos does not exist: set --videos")
    if not path.exists():
        raise UserError(f"the folder or list {os.fspath(list_path)!r} does not exist")
    if path.is_dir():
        videos = _read_folder(path, options)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"list {path} cannot be read: {error}") from error
        videos = _choose_reader(path, text)(path, text, options)
    if not videos.entries:
        raise UserError(f"list {path} contains no videos")
    return videos


def _choose_reader(path: Path, text: str):
    if path.suffix == ".json":
        return _read_ssv2
    header = [name.strip() for name in text.partition("\n")[0].split(",")]
    if "youtube_id" in header:
        return _read_kinetics
    return _read_manifest if "path" in header else _read_pairs


def find_videos(folder: str | os.PathLike) -> list[str]:
    """Returns the sorted absolute paths of all files below `folder` with a video extension."""
    paths = []
    for parent, _, names in os.walk(os.path.abspath(folder), followlinks=True):
        paths += [os.path.join(parent, n) for n in names if n.lower().endswith(VIDEO_EXTENSIONS)]
    return sorted(paths)


def _read_folder(path: Path, options: ListOptions) -> VideoList:
    source = options.source or path.resolve().name
    videos = find_videos(path)
    if not videos:
        raise UserError(f"folder {path} contains no videos ({' '.join(VIDEO_EXTENSIONS)})")
    return VideoList([VideoEntry(video, source) for video in videos])


def _read_manifest(path: Path, text: str, options: ListOptions) -> VideoList:
    rows = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    if "source" not in columns and not options.source:
        raise UserError(f"list {path} has no column 'source': add it, or give --source")
    folder = os.path.abspath(options.videos or path.parent)
    entries = []
    for row in rows:
        where = f"list {path}, line {rows.line_num}"
        if not row["path"]:
            raise UserError(f"{where}: the path is empty")
        if row.get("record"):
            raise UserError(f"{where} names a record of a shard: train on this manifest directly")
        if "://" in row["path"]:
            raise UserError(f"{where}: {row['path']} is remote: train on this manifest directly")
        labels = {n: _parse_int(row[n], f"{where}, {n}") for n in columns if n.startswith("label_")}
        start, end = (
            _parse_seconds(row.get(name), f"{where}, {name}") for name in ("start", "end")
        )
        source = options.source or row["source"] or ""
        entries.append(VideoEntry(os.path.join(folder, row["path"]), source, start, end, labels))
    return VideoList(entries)


def _read_kinetics(path: Path, text: str, options: ListOptions) -> VideoList:
    rows = list(csv.DictReader(io.StringIO(text)))
    class_names = [(row.get("label") or "").strip() for row in rows]
    class_ids = _assign_class_ids(class_names, options, path)
    files = _FileFinder(options.videos or path.parent)
    source = options.source or "kinetics"
    entries = []
    for line, (row, class_name) in enumerate(zip(rows, class_names, strict=True), start=2):
        where, name = f"list {path}, line {line}", row["youtube_id"] or ""
        start = _parse_seconds(row.get("time_start"), f"{where}, time_start")
        end = _parse_seconds(row.get("time_end"), f"{where}, time_end")
        labels = _make_labels(class_ids, class_name, options.task)
        stems = [name]
        if start is not None and end is not None:  # file names used by common download scripts
            times = int(start), int(end)
            stems = ["{}_{:06d}_{:06d}".format(name, *times), "{}_{}_{}".format(name, *times), name]
        if trimmed := files.find(stems[:-1], class_name):
            entries.append(VideoEntry(trimmed, source, labels=labels))
        elif file := files.find([name], class_name):
            may_be_trimmed = len(stems) > 1
            entries.append(VideoEntry(file, source, start, end, labels, "", may_be_trimmed))
        else:
            missing = os.path.join(files.folder, stems[0])
            problem = _describe_missing(stems)
            entries.append(VideoEntry(missing, source, labels=labels, problem=problem))
    return VideoList(entries, class_ids)


def _read_ssv2(path: Path, text: str, options: ListOptions) -> VideoList:
    try:
        rows = json.loads(text)
        names = [str(row["id"]) for row in rows]
        # The templates have placeholders in brackets; labels.json has no brackets.
        class_names = [re.sub(r"[\[\]]", "", row.get("template") or "") for row in rows]
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"list {path} does not have the format of Something-Something: it must be a JSON list "
            "of objects with an id"
        ) from error
    labels_path = path.with_name("labels.json")
    if not options.classes and labels_path.is_file():
        options = dataclasses.replace(options, classes=str(labels_path))
    class_ids = _assign_class_ids(class_names, options, path)
    files = _FileFinder(options.videos or path.parent)
    source = options.source or "ssv2"
    entries = []
    for name, class_name in zip(names, class_names, strict=True):
        labels = _make_labels(class_ids, class_name, options.task)
        if file := files.find([name], class_name):
            entries.append(VideoEntry(file, source, labels=labels))
        else:
            missing, problem = os.path.join(files.folder, name), _describe_missing([name])
            entries.append(VideoEntry(missing, source, labels=labels, problem=problem))
    return VideoList(entries, class_ids)


_PAIR = re.compile(r"^(?P<path>.+?)(?:\s*,\s*|\s+)(?P<label>-?\d+)$")


def _read_pairs(path: Path, text: str, options: ListOptions) -> VideoList:
    """Reads lines of the form `path label`, `path,label` or `path`; label -1 means no label."""
    folder = os.path.abspath(options.videos or path.parent)
    source = options.source or path.stem
    pairs = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        pair = _PAIR.match(line)
        name, label = (pair["path"], int(pair["label"])) if pair else (line, NO_LABEL)
        # VideoMAE v2 lists unlabeled videos as `path,0,-1` (folders of frames: `path,count,-1`).
        if label == NO_LABEL and (start := _PAIR.match(name)) and start["label"] == "0":
            name = start["path"]
        name = name.strip('"')
        if not name.lower().endswith(VIDEO_EXTENSIONS):
            raise UserError(
                f"list {path}, line {number}: {name!r} has no video extension; a line must be a "
                "path and a label (folders of frames are not supported)"
            )
        pairs.append((os.path.join(folder, name), label))
    has_labels = any(label != NO_LABEL for _, label in pairs)
    column = f"label_{options.task}"
    return VideoList(
        [VideoEntry(file, source, labels={column: n} if has_labels else {}) for file, n in pairs]
    )


class _FileFinder:
    """Finds videos inside a folder by their file name without extension."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.abspath(folder)
        self._by_stem = collections.defaultdict(list)
        for file in find_videos(folder):
            self._by_stem[os.path.splitext(os.path.basename(file))[0]].append(file)

    def find(self, stems: Sequence[str], class_name: str) -> str | None:
        """Returns a file with one of the names `stems`, preferably from the class's folder."""
        files = [file for stem in stems for file in self._by_stem.get(stem, ())]
        folders = {class_name, class_name.replace(" ", "_")}
        in_class = [f for f in files if os.path.basename(os.path.dirname(f)) in folders]
        return next(iter(in_class or files), None)


def _describe_missing(stems: Iterable[str]) -> str:
    return f"no video file is named {' or '.join(stems)}"


def _assign_class_ids(
    names: Iterable[str], options: ListOptions, path: Path
) -> dict[str, int] | None:
    """Returns the class id of each class name, or None if no video has a class."""
    used = sorted(set(names) - {""})
    if not used:
        return None
    class_ids = {name: number for number, name in enumerate(used)}
    class_ids = _read_classes(options.classes) if options.classes else class_ids
    unknown = [name for name in used if name not in class_ids]
    if unknown:
        raise UserError(f"class {unknown[0]!r} of {path} is not in {options.classes}: add it there")
    return class_ids


def _make_labels(class_ids: dict[str, int] | None, name: str, task: str) -> dict[str, int]:
    return {f"label_{task}": class_ids[name] if name else NO_LABEL} if class_ids else {}


def _read_classes(path: str) -> dict[str, int]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        classes = json.loads(text) if path.endswith(".json") else text.split("\n")
        if isinstance(classes, dict):
            return {name: int(number) for name, number in classes.items()}
        names = [name.strip() for name in classes]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--classes={path} cannot be read: {error}") from error
    return {name: number for number, name in enumerate(filter(None, names))}


def _parse_seconds(text: str | None, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise UserError(f"{where}: {text!r} must be a number of seconds") from error


def _parse_int(text: str | None, where: str) -> int:
    try:
        return int(text or "")
    except ValueError as error:
        raise UserError(f"{where}: {text!r} must be an integer") from error
