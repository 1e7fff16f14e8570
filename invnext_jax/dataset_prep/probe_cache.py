"""On-disk cache of probe results, so that an interrupted run can be resumed."""

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path

from absl import logging

from invnext_jax import file_lock, regular_file
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError
from invnext_jax.workers.results import check_text

VERSION = 2  # increase it when the result for the same file changes
MAX_BYTES = 2**33  # maximum size of a cache; a result has about 400 bytes
MAX_LINE_BYTES = 2**25  # a line may contain a frame index, see `index_files`
MAX_NUMBER = 2**31


class ProbeCache:
    """Cache of probe results, keyed by path, size and modification time.

    Each result is one JSON line, which is flushed immediately. Results of other probe versions are
    ignored.

    Raises:
      UserError: The cache file cannot be written, is locked by another run, or is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = file_lock.open_file(path, "a+b")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error
        self._results: dict[tuple, VideoProbe | ProbeFailure] = {}
        try:
            file_lock.acquire(self._file)
            self._read()
        except file_lock.LockHeldError as error:
            self._file.close()
            raise UserError(f"another run is writing {path}: wait until it ends") from error
        except OSError as error:
            self._file.close()
            raise UserError(f"{path} cannot be locked or read: {error}") from error
        except UserError:
            self._file.close()
            raise

    def __enter__(self) -> "ProbeCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _read(self) -> None:
        if self._file.seek(0, os.SEEK_END) > MAX_BYTES:
            raise UserError(
                f"{self._path} has more than {MAX_BYTES} bytes: delete it to probe all files again"
            )
        self._file.seek(0)
        end = 0
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise UserError(
                    f"{self._path} has a line of more than {MAX_LINE_BYTES} bytes: delete the file "
                    "to probe all videos again"
                )
            try:
                row = json.loads(line)
                key, found = tuple(row["key"]), row["found"]
                if row.get("version") == VERSION:
                    self._results[key] = _from_json(found)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not line.endswith(b"\n"):  # truncated last line of an interrupted run
                    break
                raise UserError(
                    f"{self._path} is damaged: delete it to probe all files again"
                ) from error
            end += len(line)
        self._file.truncate(end)

    def add_results_of(self, path: Path, files: Collection[str]) -> None:
        """Adds the results of another cache for files that are not in this one.

        Results of other files, results of other versions of the files, and lines that cannot be
        read are skipped.

        Args:
          path: The other cache. If it cannot be read, nothing is added.
          files: The files whose results are added.
        """
        if not os.path.isfile(path):
            return
        try:
            with regular_file.open_binary(path, MAX_BYTES) as file:
                while line := file.readline(MAX_LINE_BYTES):
                    self._add_line(line, files)
        except OSError as error:
            logging.warning("%s is skipped: %s", path, error.strerror or error)

    def _add_line(self, line: bytes, files: Collection[str]) -> None:
        try:
            row = json.loads(line)
            key, found = tuple(row["key"]), row["found"]
            if row["version"] == VERSION and key[0] in files and _is_key(key):
                self._results.setdefault(key, _from_json(found))
        except (ValueError, LookupError, TypeError, RecursionError):
            pass

    def get(self, path: str, timeout: float) -> VideoProbe | ProbeFailure | None:
        """Returns the cached result, or None if there is none for the current version of the file.

        Args:
          path: Path of the video file.
          timeout: Current time limit in seconds. A result that timed out with a lower limit is
              ignored.
        """
        key = _key(path)
        result = self._results.get(key) if key else None
        limit = getattr(result, "timeout", None)
        return None if limit is not None and limit < timeout else result

    def put(self, path: str, result: VideoProbe | ProbeFailure) -> None:
        """Stores a result.

        Transient failures, invalid values and results of files that do not exist are not stored.
        """
        key = _key(path)
        if key is None or (isinstance(result, ProbeFailure) and result.transient):
            return
        row = {"key": key, "version": VERSION, "found": _to_json(result)}
        try:
            _from_json(row["found"])
        except (ValueError, TypeError):  # a later run would call the file damaged
            return
        line = json.dumps(row).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            self._file.write(line)
            self._file.flush()


def _key(path: str) -> tuple[str, int, int] | None:
    """Returns the path, the size and the modification time, or None if there is no such file."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None
    return path, stat.st_size, stat.st_mtime_ns


def _is_key(key: tuple) -> bool:
    """Returns whether a key is that of the current version of an existing file."""
    return all(type(number) is int for number in key[1:]) and key == _key(key[0])


def _to_json(result: VideoProbe | ProbeFailure) -> dict:
    if isinstance(result, VideoProbe):
        return dataclasses.asdict(result)
    return {"reason": result.reason, "seconds": result.timeout, "passing": result.transient}


def _from_json(fields: dict) -> VideoProbe | ProbeFailure:
    if "codec" not in fields:
        found = ProbeFailure(fields["reason"], fields["seconds"], fields["passing"])
        types = (found.reason, str), (found.timeout, int | float | None), (found.transient, bool)
    else:
        found = VideoProbe(**fields)
        types = ((getattr(found, f.name), f.type) for f in dataclasses.fields(VideoProbe))
    for value, expected in types:
        if not isinstance(value, int | float if expected is float else expected):
            raise TypeError(f"{value!r} is not of type {expected}")
        if isinstance(value, str):
            check_text(value)
    if isinstance(found, VideoProbe):
        counts, seconds = (found.frames, found.width, found.height), (found.duration, found.fps)
        # Durations and frame rates are rounded, possibly to 0. The comparisons are false for NaN.
        if not (0 < min(counts) and all(0 <= value < MAX_NUMBER for value in (*counts, *seconds))):
            raise ValueError(f"{(*counts, *seconds)} are not the properties of a video")
    return found
