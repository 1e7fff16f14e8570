"""Lists of videos as data sets come with them, read into one form.

Known forms: a folder; our own manifests; Kinetics' CSV (label, youtube_id, time_start, time_end,
split); lines of `path label` or `path,label`, as VideoMAE and MMAction write them; and the JSON
lists of Something-Something v2 with labels.json beside them.
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

EXTENSIONS = tuple(
    ".mp4 .webm .mkv .avi .mov .m4v .mpg .mpeg .ts .m2ts .wmv .flv .ogv .3gp .vob".split()
)
NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video of a list.

    Attributes:
        path: Absolute path of the file; of a missing one what was looked for.
        source: Data set.
        start: Seconds; None is the beginning.
        end: Seconds; None is the end.
        labels: Class numbers by `label_<task>`.
        problem: Why there is nothing to read, else "".
        may_be_cut: Whether the file may hold just the seconds from `start` to `end`.
    """

    path: str
    source: str
    start: float | None = None
    end: float | None = None
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    problem: str = ""
    may_be_cut: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a list is read.

    Attributes:
        videos: Folder of the files; "" is the list's own.
        source: Name of the data set; "" derives it from the list.
        task: The single label of a foreign list becomes the column `label_<task>`.
        classes: File of class names, JSON or one a line, which fixes their numbers; "" numbers the
            names of the list in alphabetical order.
    """

    videos: str = ""
    source: str = ""
    task: str = "class"
    classes: str = ""


@dataclasses.dataclass(frozen=True)
class Listing:
    """The videos of a list in its order, and the classes' numbers if it names classes."""

    entries: list[Entry]
    classes: dict[str, int] | None = None


def read_list(given: str | os.PathLike, settings: Settings) -> Listing:
    """Reads a folder or a list; the form is told by its name and first line.

    Raises:
        UserError: There is no such file, it has no known form, a line is wrong, or it is empty.
    """
    path = Path(given)
    if settings.videos and not Path(settings.videos).is_dir():
        raise UserError(f"there is no folder {settings.videos!r} of videos: set --videos")
    if not path.exists():
        raise UserError(f"there is no folder or list {os.fspath(given)!r}")
    if path.is_dir():
        listing = _read_folder(path, settings)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"list {path} cannot be read: {error}") from error
        listing = _choose_reader(path, text)(path, text, settings)
    if not listing.entries:
        raise UserError(f"{path} names no video")
    return listing


def _choose_reader(path: Path, text: str):
    if path.suffix == ".json":
        return _read_ssv2
    header = [name.strip() for name in text.partition("\n")[0].split(",")]
    if "youtube_id" in header:
        return _read_kinetics
    return _read_own if "path" in header else _read_pairs


def walk_videos(folder: str | os.PathLike) -> list[str]:
    """Absolute paths of all files below `folder` with a video's extension, sorted."""
    found = []
    for parent, _, names in os.walk(os.path.abspath(folder), followlinks=True):
        found += [os.path.join(parent, n) for n in names if n.lower().endswith(EXTENSIONS)]
    return sorted(found)


def _read_folder(path: Path, settings: Settings) -> Listing:
    source = settings.source or path.resolve().name
    found = walk_videos(path)
    if not found:
        raise UserError(f"folder {path} holds no video ({' '.join(EXTENSIONS)})")
    return Listing([Entry(video, source) for video in found])


def _read_own(path: Path, text: str, settings: Settings) -> Listing:
    rows = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    if "source" not in columns and not settings.source:
        raise UserError(f"list {path} has no column 'source': add it, or give --source")
    folder = os.path.abspath(settings.videos or path.parent)
    entries = []
    for row in rows:
        where = f"list {path}, line {rows.line_num}"
        if not row["path"]:
            raise UserError(f"{where}: the path is empty")
        if row.get("record"):
            raise UserError(f"{where} names a record of a shard: train on this manifest as it is")
        if "://" in row["path"]:
            raise UserError(f"{where}: {row['path']} is remote: train on this manifest as it is")
        labels = {n: _integer(row[n], f"{where}, {n}") for n in columns if n.startswith("label_")}
        start, end = (_seconds(row.get(name), f"{where}, {name}") for name in ("start", "end"))
        source = settings.source or row["source"] or ""
        entries.append(Entry(os.path.join(folder, row["path"]), source, start, end, labels))
    return Listing(entries)


def _read_kinetics(path: Path, text: str, settings: Settings) -> Listing:
    rows = list(csv.DictReader(io.StringIO(text)))
    given = [(row.get("label") or "").strip() for row in rows]
    numbers = _number_classes(given, settings, path)
    files = _Files(settings.videos or path.parent)
    source = settings.source or "kinetics"
    entries = []
    for line, (row, label) in enumerate(zip(rows, given, strict=True), start=2):
        where, name = f"list {path}, line {line}", row["youtube_id"] or ""
        start = _seconds(row.get("time_start"), f"{where}, time_start")
        end = _seconds(row.get("time_end"), f"{where}, time_end")
        labels = _label(numbers, label, settings.task)
        stems = [name]
        if start is not None and end is not None:  # as the usual download scripts cut and name them
            times = int(start), int(end)
            stems = ["{}_{:06d}_{:06d}".format(name, *times), "{}_{}_{}".format(name, *times), name]
        if cut := files.find(stems[:-1], label):
            entries.append(Entry(cut, source, labels=labels))
        elif whole := files.find([name], label):
            entries.append(Entry(whole, source, start, end, labels, may_be_cut=len(stems) > 1))
        else:
            missing = os.path.join(files.folder, stems[0])
            entries.append(Entry(missing, source, labels=labels, problem=_missing(stems)))
    return Listing(entries, numbers)


def _read_ssv2(path: Path, text: str, settings: Settings) -> Listing:
    try:
        rows = json.loads(text)
        names = [str(row["id"]) for row in rows]
        # The templates' placeholders stand in brackets, which labels.json leaves out.
        given = [re.sub(r"[\[\]]", "", row.get("template") or "") for row in rows]
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"list {path} is not like Something-Something's: a list of objects with an id"
        ) from error
    beside = path.with_name("labels.json")
    if not settings.classes and beside.is_file():
        settings = dataclasses.replace(settings, classes=str(beside))
    numbers = _number_classes(given, settings, path)
    files = _Files(settings.videos or path.parent)
    entries = []
    for name, label in zip(names, given, strict=True):
        labels = _label(numbers, label, settings.task)
        file = files.find([name], label)
        missing = {} if file else {"problem": _missing([name])}
        file = file or os.path.join(files.folder, name)
        entries.append(Entry(file, settings.source or "ssv2", labels=labels, **missing))
    return Listing(entries, numbers)


_PAIR = re.compile(r"^(?P<path>.+?)(?:\s*,\s*|\s+)(?P<label>-?\d+)$")


def _read_pairs(path: Path, text: str, settings: Settings) -> Listing:
    """Lines of `path label`, `path,label` or a bare path; a label of -1 stands for none."""
    folder = os.path.abspath(settings.videos or path.parent)
    source = settings.source or path.stem
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        pair = _PAIR.match(line)
        name, label = (pair["path"], int(pair["label"])) if pair else (line, NO_LABEL)
        # VideoMAE v2 lists unlabeled videos as `path,0,-1`; frame folders have a count there.
        if label == NO_LABEL and (start := _PAIR.match(name)) and start["label"] == "0":
            name = start["path"]
        name = name.strip('"')
        if not name.lower().endswith(EXTENSIONS):
            raise UserError(
                f"list {path}, line {number}: {name!r} has no video's extension; lists hold a path "
                "and a label (folders of frames are not read)"
            )
        found.append((os.path.join(folder, name), label))
    labelled = any(label != NO_LABEL for _, label in found)
    column = f"label_{settings.task}"
    return Listing(
        [Entry(file, source, labels={column: n} if labelled else {}) for file, n in found]
    )


class _Files:
    """The videos below a folder by their names without extension."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.abspath(folder)
        self._by_stem = collections.defaultdict(list)
        for file in walk_videos(folder):
            self._by_stem[os.path.splitext(os.path.basename(file))[0]].append(file)

    def find(self, stems: Sequence[str], label: str) -> str | None:
        """The file of one of the names, first of all in a folder that is called like the label."""
        found = [file for stem in stems for file in self._by_stem.get(stem, ())]
        labels = {label, label.replace(" ", "_")}
        in_class = [f for f in found if os.path.basename(os.path.dirname(f)) in labels]
        return next(iter(in_class or found), None)


def _missing(stems: Iterable[str]) -> str:
    return f"no file is called {' or '.join(stems)} with a video's extension"


def _number_classes(names: Iterable[str], settings: Settings, path: Path) -> dict[str, int] | None:
    """Numbers of the classes by name; None if no video has a class."""
    used = sorted(set(names) - {""})
    if not used:
        return None
    numbers = {name: number for number, name in enumerate(used)}
    numbers = _read_classes(settings.classes) if settings.classes else numbers
    unknown = [name for name in used if name not in numbers]
    if unknown:
        raise UserError(f"class {unknown[0]!r} of {path} is not in {settings.classes}")
    return numbers


def _label(numbers: dict[str, int] | None, name: str, task: str) -> dict[str, int]:
    return {f"label_{task}": numbers[name] if name else NO_LABEL} if numbers else {}


def _read_classes(path: str) -> dict[str, int]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        given = json.loads(text) if path.endswith(".json") else text.split("\n")
        if isinstance(given, dict):
            return {name: int(number) for name, number in given.items()}
        names = [name.strip() for name in given]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"classes {path} cannot be read: {error}") from error
    return {name: number for number, name in enumerate(filter(None, names))}


def _seconds(text: str | None, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise UserError(f"{where}: {text!r} is no number of seconds") from error


def _integer(text: str | None, where: str) -> int:
    try:
        return int(text or "")
    except ValueError as error:
        raise UserError(f"{where}: {text!r} is no whole number") from error
