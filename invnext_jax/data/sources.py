"""Manifests of video files and the random-access source over them.

A manifest is a CSV file with a header: `path` (relative to the manifest's folder, or absolute),
`source` (name of the data set) and, if wanted, `start` and `end` (seconds), `record` (the video's
place in `path`, which is an ArrayRecord file then) and any number of `label_<task>` columns of
integers. More columns are ignored.
"""

import csv
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from invnext_jax.data import shards
from invnext_jax.errors import UserError

LABEL_PREFIX = "label_"
NO_RECORD = -1


@dataclasses.dataclass(frozen=True)
class VideoRecord:
    """One row of a manifest; `labels` maps `label_<task>` to a class number."""

    index: int
    path: str
    source: str
    start: float | None
    end: float | None
    labels: dict[str, int]
    record: int | None = None

    @property
    def name(self) -> str:
        """What messages and lists call the video: its path, or `path#record`."""
        return shards.name_video(self.path, self.record)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The rows of a manifest as columns, which keeps millions of them small.

    Attributes:
        file: Path of the manifest.
        paths: Absolute path of each video.
        sources: Data set of each video.
        start: Seconds, float64 [rows]; NaN for the beginning.
        end: Seconds, float64 [rows]; NaN for the end.
        labels: int32 [rows] for each `label_<task>` column.
        record: Place of each video in the file at its path, int64 [rows]; -1: the file is it.
    """

    file: str
    paths: list[str]
    sources: list[str]
    start: np.ndarray
    end: np.ndarray
    labels: dict[str, np.ndarray]
    record: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> VideoRecord:
        if not 0 <= index < len(self.paths):
            raise IndexError(f"row {index} of {len(self.paths)}")
        return VideoRecord(
            index=int(index),
            path=self.paths[index],
            source=self.sources[index],
            start=_optional(self.start[index]),
            end=_optional(self.end[index]),
            labels={name: int(values[index]) for name, values in self.labels.items()},
            record=None if self.record[index] == NO_RECORD else int(self.record[index]),
        )

    def __iter__(self) -> Iterator[VideoRecord]:
        return (self[index] for index in range(len(self)))


class VideoFileSource:
    """Random access to the rows of a manifest, in the form that grain asks for."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> VideoRecord:
        return self.manifest[int(index)]

    def __repr__(self) -> str:
        return f"VideoFileSource(rows={len(self)})"


def find_manifest(path: str | os.PathLike) -> str:
    """The CSV file that is meant: `path`, the only one of a folder, or `<path>.csv`.

    Raises:
        UserError: A folder holds no manifest or several.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        # Not `<split>.quarantine.csv` and the like.
        found = [n for n in sorted(os.listdir(path)) if n.endswith(".csv") and n.count(".") == 1]
        if len(found) != 1:
            what = f"several: {', '.join(found)}" if found else "none"
            raise UserError(f"folder {path} should hold one manifest, it has {what}: name the file")
        return os.path.join(path, found[0])
    beside = f"{path}.csv"
    return beside if not os.path.exists(path) and os.path.isfile(beside) else path


def read_manifest(path: str | os.PathLike) -> Manifest:
    """Reads a manifest, or a folder's, see `find_manifest`; the videos are not touched.

    Raises:
        UserError: The file is missing, empty, has no `path` or `source` column, or a cell that is
            no number.
    """
    if not os.fspath(path):
        raise UserError("no manifest named: set config.data.manifest to a CSV file of videos")
    path = Path(find_manifest(path))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            missing = [name for name in ("path", "source") if name not in columns]
            if missing:
                raise UserError(f"manifest {path} has no column {missing[0]!r} in its first line")
            manifest = _read_rows(path, rows, columns)
    except FileNotFoundError as error:
        raise UserError(f"manifest {path} does not exist: set config.data.manifest") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"manifest {path} cannot be read: {error}") from error
    if not len(manifest):
        raise UserError(f"manifest {path} is empty: it names no video")
    return manifest


def _read_rows(path: Path, rows: csv.DictReader, columns: list[str]) -> Manifest:
    folder = os.path.abspath(path.parent)
    tasks = [name for name in columns if name.startswith(LABEL_PREFIX)]
    paths, sources, records, names = [], [], [], {}
    times = {"start": [], "end": []}
    labels = {name: [] for name in tasks}
    for row in rows:
        if not row["path"]:
            raise UserError(f"manifest {path}, line {rows.line_num}: the path is empty")
        video = os.path.join(folder, row["path"])
        record = _number(int, row.get("record") or NO_RECORD, path, rows.line_num, "record")
        # One string object a shard, as below one a data set.
        paths.append(video if record == NO_RECORD else names.setdefault(video, video))
        records.append(record)
        source = row["source"] or ""
        sources.append(names.setdefault(source, source))
        for name, values in times.items():
            values.append(_number(float, row.get(name) or "nan", path, rows.line_num, name))
        for name, values in labels.items():
            values.append(_number(int, row[name], path, rows.line_num, name))
    return Manifest(
        file=str(path),
        paths=paths,
        sources=sources,
        start=np.array(times["start"], np.float64),
        end=np.array(times["end"], np.float64),
        labels={name: np.array(values, np.int32) for name, values in labels.items()},
        record=np.array(records, np.int64),
    )


def _number(kind: type, text: str | None, path: Path, line: int, column: str):
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"manifest {path}, line {line}: {text!r} in column {column!r} is no {kind.__name__}"
        ) from error


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
