"""What was found out about files so far, on disk, for a run that goes on where one was killed."""

import dataclasses
import json
import os
from pathlib import Path

from invnext_jax import file_lock
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError


class ProbeCache:
    """Results by path, size and time of change, kept line by line so that a kill loses none.

    Raises:
        UserError: Another run holds the file, or it has been damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error
        try:
            file_lock.acquire(self._file)
        except file_lock.LockHeldError as error:
            self._file.close()
            raise UserError(f"another run is writing {path}: wait for its end") from error
        self._known: dict[tuple, VideoProbe | ProbeFailure] = {}
        try:
            self._read()
        except UserError:
            self._file.close()
            raise

    def __enter__(self) -> "ProbeCache":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                row = json.loads(line)
                kind = VideoProbe if "codec" in row["found"] else ProbeFailure
                self._known[tuple(row["key"])] = kind(**row["found"])
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith(b"\n"):  # the last words of a killed run
                    break
                raise UserError(f"{self._path} is damaged: delete it to start anew") from error
            end += len(line)
        self._file.truncate(end)

    def recall(self, path: str, seconds: float) -> VideoProbe | ProbeFailure | None:
        """What is known of the file as it is now; one that hung is tried again with more time."""
        known = self._known.get(_key(path))
        hung = getattr(known, "seconds", None)
        return None if hung is not None and hung < seconds else known

    def note(self, path: str, result: VideoProbe | ProbeFailure) -> None:
        """Adds a line, unless the next run should look again."""
        if isinstance(result, ProbeFailure) and result.passing:
            return
        row = {"key": _key(path), "found": dataclasses.asdict(result)}
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()


def _key(path: str) -> tuple[str, int | None, int | None]:
    try:
        stat = os.stat(path)
    except OSError:
        return path, None, None
    return path, stat.st_size, stat.st_mtime_ns
