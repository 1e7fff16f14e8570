"""Reads manifests: CSV files that list videos.

The first line of a manifest is a header. Its columns are `path` (relative to the manifest's folder,
absolute, or `protocol://...`), `source` (name of the data set) and, optionally, `start` and `end`
(seconds), `record` (position of the video in `path`, which is then an ArrayRecord file), and
integer columns `label_<task>`, in which a blank cell or -1 means no label. Other columns are not
read (see columns.py). The manifest may be on a remote file system. `world:...` is the manifest of a
rendered world, see synthetic_world/urls.py.
"""

import csv
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from invnext_jax import csv_text
from invnext_jax.data import columns as columns_lib
from invnext_jax.data import files as files_lib
from invnext_jax.data import shards, video_io
from invnext_jax.data.access_rules import DEFAULT_RULES, AccessRules
from invnext_jax.data.columns import LABEL_PREFIX
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import files, urls

NO_RECORD, NO_ORIGINAL = -1, (0, shards.WHOLE_FILE)
_ARRAYS = ("start", "end", "record", "original", "original_times")
csv.field_size_limit(2**31 - 1)  # some captions exceed the default of 131,072 characters
NOT_MANIFESTS = tuple(f".{name}.csv" for name in ("quarantine", "duplicates", "damaged", "similar"))


@dataclasses.dataclass(frozen=True)
class VideoRecord:
    """A row of a manifest.

    Attributes:
      index: Row number.
      path: Absolute path of the video, or its remote address or name in a rendered world.
      source: Name of the data set.
      start: Start in seconds after the first frame. None is the beginning.
      end: End in seconds after the first frame. None is the end.
      labels: Class id of each `label_<task>` column.
      record: Position in the shard at `path`, or None if `path` is a video file.
    """

    index: int
    path: str
    source: str
    start: float | None
    end: float | None
    labels: dict[str, int]
    record: int | None = None

    @property
    def name(self) -> str:
        """Name of the video in messages and lists: `path` or `path#record`, without secrets."""
        return shards.name_video(self.path, self.record)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The rows of a manifest, stored as columns so that millions of rows need little memory.

    Attributes:
      file: Name of the manifest, or several names separated by commas.
      paths: `VideoRecord.path` of each row.
      sources: Name of the data set of each row.
      start: Start in seconds, float64 [rows]; NaN is the beginning.
      end: End in seconds, float64 [rows]; NaN is the end.
      labels: Class ids, int32 [rows] for each `label_<task>` column.
      record: Position of each video in its shard, int64 [rows]; -1 if the path is a video file.
      original: Hash of the file that each record was made from, int64 [rows]; 0 if unknown.
      original_times: Its times in that file, float64 [rows, 2]; NaN, or infinite if unknown.
    """

    file: str
    paths: list[str]
    sources: list[str]
    start: np.ndarray
    end: np.ndarray
    labels: dict[str, np.ndarray]
    record: np.ndarray
    original: np.ndarray
    original_times: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> VideoRecord:
        if not 0 <= index < len(self.paths):
            raise IndexError(f"row {index} is not one of {len(self.paths)} rows")
        times = float(self.start[index]), float(self.end[index])
        start, end = (None if math.isnan(time) else time for time in times)
        return VideoRecord(
            index=int(index),
            path=self.paths[index],
            source=self.sources[index],
            start=start,
            end=end,
            labels={name: int(values[index]) for name, values in self.labels.items()},
            record=None if self.record[index] == NO_RECORD else int(self.record[index]),
        )

    def __iter__(self) -> Iterator[VideoRecord]:
        return (self[index] for index in range(len(self)))


def split_names(names: str) -> list[str]:
    """Splits a comma-separated list of names, unless a file with the whole name exists."""
    return [names] if os.path.exists(names) else [name.strip() for name in names.split(",")]


def list_manifests(names: str | os.PathLike) -> list[str]:
    """Finds the CSV file of each name, which is a file, a file without ".csv", or a folder.

    Args:
      names: One or more names, separated by commas. Names of rendered worlds do not change.

    Raises:
      UserError: A folder contains no manifest or more than one.
    """
    return [_find_file(name) for name in split_names(os.fspath(names))]


def find_manifests(names: str | os.PathLike) -> str:
    """Returns the files of `list_manifests`, separated by commas."""
    return ",".join(list_manifests(names))


def _find_file(path: str) -> str:
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        files = [n for n in names if n.endswith(".csv") and not n.endswith(NOT_MANIFESTS)]
        if not files:
            raise UserError(
                f"folder {path} contains no manifest: list its videos in one with "
                f"launch/prepare_data.py index {path} --out=mine.csv"
            )
        if len(files) > 1:
            raise UserError(
                f"folder {path} contains several manifests: {', '.join(files)}; specify the file"
            )
        return os.path.join(path, files[0])
    return f"{path}.csv" if not os.path.exists(path) and os.path.isfile(f"{path}.csv") else path


def hash_manifests(names: str) -> str:
    """Returns the SHA-256 of a manifest's content; for several manifests, of their joined hashes.

    A rendered world is hashed by its name. Checkpoints contain the hash, so it must not change.
    """
    hashes = [
        hashlib.sha256(name.encode()).hexdigest()
        if video_io.is_world(name)
        else video_io.hash_files([name])
        for name in split_names(names)
    ]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_manifest(
    names: str | os.PathLike | Sequence[str], rules: AccessRules = DEFAULT_RULES
) -> Manifest:
    """Reads one or more manifests without opening the videos.

    Args:
      names: A local or remote CSV file, a folder (see `list_manifests`), a rendered world, or
          several of these, separated by commas or as a sequence. Their rows are concatenated. If
          a manifest lacks a label column that another one has, its rows get the label -1.
      rules: Rules for which files the rows may refer to.

    Raises:
      UserError: A file is given twice, is missing or empty, has no `path` or `source` column, has
          columns that `check_columns` refuses, a missing cell, or an invalid number in a cell;
          `rules` do not allow a file; or the package for a remote file system is not installed.
    """
    names = split_names(os.fspath(names)) if isinstance(names, str | os.PathLike) else [*names]
    if not any(names):
        raise UserError("no manifest given: set config.data.manifest to a CSV file of videos")
    files = [name if video_io.is_world(name) else _find_file(name) for name in names]
    same = [os.path.realpath(file) if os.path.exists(file) else file for file in files]
    for number, file in enumerate(files):
        if same[number] in same[:number]:
            raise UserError(
                f"manifest {file} is given twice: remove one of them; to draw a source more often, "
                "set config.data.weights"
            )
    parts = [
        _make_world_rows(file) if video_io.is_world(file) else _read_file(file, rules)
        for file in files
    ]
    return parts[0] if len(parts) == 1 else _concatenate(",".join(names), parts)


def _read_file(path: str, rules: AccessRules) -> Manifest:
    rules.check_manifest(path)
    try:
        with video_io.open_text(path) as file:
            rows = csv.reader(csv_text.read_lines(file))
            columns = next(rows, [])
            missing = [name for name in ("path", "source") if name not in columns]
            if missing:
                raise UserError(
                    f"manifest {path} has no column {missing[0]!r} in its first line: separate the "
                    "columns path, source, label_<task> by commas, or convert the list with "
                    "launch/prepare_data.py index"
                )
            columns_lib.check_columns(path, columns)
            manifest = _read_rows(path, rows, columns, rules)
    except FileNotFoundError as error:
        raise UserError(
            f"manifest {path} does not exist: specify the CSV file that lists the videos, or make "
            "the synthetic world with launch/make_world.py"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"manifest {path} cannot be read: {error}") from error
    if not len(manifest):
        raise UserError(f"manifest {path} is empty: add a row for each video")
    remote = {files_lib.protocol_of(p): p for p in filter(video_io.is_remote, manifest.paths)}
    for video in remote.values():
        files_lib.check_protocol(video)
    return manifest


def _make_world_rows(name: str) -> Manifest:
    world = urls.parse(name)
    labels = urls.label_columns(world)
    return Manifest(
        file=name,
        paths=[urls.clip_name(name, index) for index in range(world.videos)],
        sources=[files.SOURCE] * world.videos,
        start=np.full(world.videos, np.nan),
        end=np.full(world.videos, np.nan),
        labels={LABEL_PREFIX + task: values for task, values in labels.items()},
        record=np.full(world.videos, NO_RECORD),
        original=np.zeros(world.videos, np.int64),
        original_times=np.full((world.videos, 2), np.nan),
    )


def _concatenate(names: str, parts: Sequence[Manifest]) -> Manifest:
    tasks = dict.fromkeys(task for part in parts for task in part.labels)
    absent = [np.full(len(part), -1, np.int32) for part in parts]
    labels = {
        task: [part.labels.get(task, none) for part, none in zip(parts, absent, strict=True)]
        for task in tasks
    }
    return Manifest(
        file=names,
        paths=[path for part in parts for path in part.paths],
        sources=[source for part in parts for source in part.sources],
        labels={task: np.concatenate(values) for task, values in labels.items()},
        **{name: np.concatenate([vars(part)[name] for part in parts]) for name in _ARRAYS},
    )


def _read_rows(path: str, rows: Any, columns: list[str], rules: AccessRules) -> Manifest:
    folder = video_io.folder_of(path)
    paths, sources, records, originals, interned = [], [], [], [], {}
    times = {"start": [], "end": []}
    labels = {name: [] for name in columns if name.startswith(LABEL_PREFIX)}
    for cells in filter(None, rows):
        line = f"manifest {path}, line {rows.line_num}"
        csv_text.check_cells(line, cells, columns)
        row = dict(zip(columns, cells, strict=False))
        video = video_io.join(folder, columns_lib.check_path(row["path"], line))
        rules.check_row(video, path, line)
        record = columns_lib.parse_record_cell(row.get("record"), line, NO_RECORD)
        # Interning keeps one string object per shard and, below, one per data set.
        paths.append(video if record == NO_RECORD else interned.setdefault(video, video))
        if record != NO_RECORD and video_io.is_remote(video):
            raise UserError(
                f"{line}: shards must be on a mounted file system: mount or copy "
                f"{video_io.folder_of(video)}"
            )
        records.append(record)
        originals.append(NO_ORIGINAL if record == NO_RECORD else shards.parse_original(row, line))
        source = row["source"]
        if source not in interned:
            columns_lib.check_source(source, line)
        sources.append(interned.setdefault(source, source))
        for name, values in times.items():
            values.append(columns_lib.parse_seconds_cell(row.get(name), line, name))
        for name, values in labels.items():
            values.append(columns_lib.parse_label_cell(row[name], line, name))
    return Manifest(
        file=path,
        paths=paths,
        sources=sources,
        start=np.array(times["start"], np.float64),
        end=np.array(times["end"], np.float64),
        labels={name: np.array(values, np.int32) for name, values in labels.items()},
        record=np.array(records, np.int64),
        original=np.array([number for number, _ in originals], np.int64),
        original_times=np.array([times_of_row for _, times_of_row in originals], np.float64),
    )
