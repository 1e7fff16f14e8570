"""Manifests of video files and the random-access source over them.

A manifest is a CSV file with a header: `path` (relative to the manifest's folder, absolute, or
`protocol://...`), `source` (name of the data set) and, if wanted, `start` and `end` (seconds),
`record` (the video's place in `path`, which is an ArrayRecord file then) and any number of
`label_<task>` columns of integers. More columns are ignored. It may lie on a remote file system
itself, and `world:...` stands for the manifest of a drawn world, see world_urls.py.
"""

import csv
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from invnext_jax.data import shards, video_io
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import files, urls

LABEL_PREFIX = "label_"
NO_RECORD = -1
LABELS = np.iinfo(np.int32)
BESIDE = (".quarantine.csv", ".duplicates.csv")  # what ends files that stand beside a manifest


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
        file: Name of the manifest, or names separated by commas.
        paths: Absolute path of each video, or its name on a remote file system or in a world.
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
    """Random access to the rows of a manifest, or to some of them, in the form of grain.

    Args:
        manifest: The rows.
        rows: Numbers of those wanted, in order; None: all.
    """

    def __init__(self, manifest: Manifest, rows: Sequence[int] | None = None):
        self.manifest = manifest
        self._rows = range(len(manifest)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> VideoRecord:
        return self.manifest[int(self._rows[index])]

    def __repr__(self) -> str:
        return f"VideoFileSource(rows={len(self)})"


def split_names(names: str) -> list[str]:
    """The manifests that `config.data.manifest` names: one that is there, or several."""
    return [names] if os.path.exists(names) else [name.strip() for name in names.split(",")]


def list_manifests(names: str | os.PathLike) -> list[str]:
    """The CSV file that is meant by each of the names; of drawn worlds, the name.

    The file is what is named, the only one of a folder, or `<name>.csv`.

    Raises:
        UserError: A folder holds no manifest or several.
    """
    return [_find_file(name) for name in split_names(os.fspath(names))]


def find_manifests(names: str | os.PathLike) -> str:
    """The manifests of `list_manifests`, separated by commas."""
    return ",".join(list_manifests(names))


def _find_file(path: str) -> str:
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        found = [n for n in names if n.endswith(".csv") and not n.endswith(BESIDE)]
        if len(found) != 1:
            what = f"several: {', '.join(found)}" if found else "none"
            raise UserError(f"folder {path} should hold one manifest, it has {what}: name the file")
        return os.path.join(path, found[0])
    beside = f"{path}.csv"
    return beside if not os.path.exists(path) and os.path.isfile(beside) else path


def hash_manifests(names: str) -> str:
    """SHA-256 of a manifest's content, local or remote, or that of several, which are joined.

    A drawn world is nothing but its name. Checkpoints hold the value: it stays what it is.
    """
    hashes = [
        hashlib.sha256(name.encode()).hexdigest()
        if urls.is_world(name)
        else video_io.hash_files([name])
        for name in split_names(names)
    ]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_manifest(names: str | os.PathLike | Sequence[str]) -> Manifest:
    """Reads a manifest; the videos themselves are not touched.

    Args:
        names: A CSV file, local or remote, a folder, see `find_manifests`, a world, or several of
            them separated by commas, whose rows follow each other. Where one has no column of
            labels that others have, it is -1. Or a sequence of names.

    Raises:
        UserError: A file is missing, empty, has no `path` or `source` column, or a cell that is no
            number; or what a remote file system needs is not installed.
    """
    given = split_names(os.fspath(names)) if isinstance(names, str | os.PathLike) else [*names]
    if not any(given):
        raise UserError("no manifest named: set config.data.manifest to a CSV file of videos")
    parts = [
        _draw_rows(name) if urls.is_world(name) else _read_file(_find_file(name)) for name in given
    ]
    return parts[0] if len(parts) == 1 else _join(",".join(given), parts)


def _read_file(path: str) -> Manifest:
    try:
        with video_io.open_text(path) as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            missing = [name for name in ("path", "source") if name not in columns]
            if missing:
                raise UserError(f"manifest {path} has no column {missing[0]!r} in its first line")
            manifest = _read_rows(path, rows, columns)
    except FileNotFoundError as error:
        raise UserError(
            f"manifest {path} is not there: name the CSV file that lists the videos, or make the "
            "embedded world with launch/make_world.py"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"manifest {path} cannot be read: {error}") from error
    if not len(manifest):
        raise UserError(f"manifest {path} is empty: it names no video")
    systems = {video_io.protocol_of(p): p for p in manifest.paths if video_io.is_remote(p)}
    for video in systems.values():
        video_io.check_protocol(video)
    return manifest


def _draw_rows(name: str) -> Manifest:
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
    )


def _join(names: str, parts: Sequence[Manifest]) -> Manifest:
    tasks = dict.fromkeys(task for part in parts for task in part.labels)
    absent = [np.full(len(part), -1, np.int32) for part in parts]
    return Manifest(
        file=names,
        paths=[path for part in parts for path in part.paths],
        sources=[source for part in parts for source in part.sources],
        start=np.concatenate([part.start for part in parts]),
        end=np.concatenate([part.end for part in parts]),
        labels={
            task: np.concatenate(
                [part.labels.get(task, none) for part, none in zip(parts, absent, strict=True)]
            )
            for task in tasks
        },
        record=np.concatenate([part.record for part in parts]),
    )


def _read_rows(path: str, rows: csv.DictReader, columns: list[str]) -> Manifest:
    folder = video_io.folder_of(path)
    tasks = [name for name in columns if name.startswith(LABEL_PREFIX)]
    paths, sources, records, names = [], [], [], {}
    times = {"start": [], "end": []}
    labels = {name: [] for name in tasks}
    for row in rows:
        if not row["path"]:
            raise UserError(f"manifest {path}, line {rows.line_num}: the path is empty")
        video = video_io.join(folder, row["path"])
        record = _number(int, row.get("record") or NO_RECORD, path, rows.line_num, "record")
        if not NO_RECORD <= record < 2**63:
            raise UserError(f"manifest {path}, line {rows.line_num}: there is no record {record}")
        # One string object a shard, as below one a data set.
        paths.append(video if record == NO_RECORD else names.setdefault(video, video))
        if record != NO_RECORD and video_io.is_remote(video):
            raise UserError(
                f"manifest {path}, line {rows.line_num}: shards must lie on a mounted file system: "
                f"mount or copy {video_io.folder_of(video)}"
            )
        records.append(record)
        source = row["source"] or ""
        sources.append(names.setdefault(source, source))
        for name, values in times.items():
            values.append(_number(float, row.get(name) or "nan", path, rows.line_num, name))
        for name, values in labels.items():
            label = _number(int, row[name], path, rows.line_num, name)
            if not LABELS.min <= label <= LABELS.max:
                raise UserError(
                    f"manifest {path}, line {rows.line_num}: {label} in column {name!r} is beyond "
                    "32 bits: number the classes from 0"
                )
            values.append(label)
    return Manifest(
        file=path,
        paths=paths,
        sources=sources,
        start=np.array(times["start"], np.float64),
        end=np.array(times["end"], np.float64),
        labels={name: np.array(values, np.int32) for name, values in labels.items()},
        record=np.array(records, np.int64),
    )


def _number(kind: type, text: str | None, path: str, line: int, column: str):
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"manifest {path}, line {line}: {text!r} in column {column!r} is no {kind.__name__}"
        ) from error


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
