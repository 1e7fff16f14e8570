"""The run's folder: locks it against a second run, and checks its free space before each save."""

import json
import os
import pathlib
import shutil
import socket

import jax
from absl import logging

from invnext_jax import file_lock
from invnext_jax.errors import UserError

LOCK = "run.lock"


class Workdir:
    """Creates the run's folder and, in process 0, locks it until `close`.

    The kernel releases the lock when the process ends.

    Args:
        path: the run's folder.

    Raises:
        UserError: the folder cannot be written, or another process has locked it.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).absolute()
        self._file = None
        if jax.process_index() != 0:
            return
        try:
            self._lock()
        except OSError as error:
            raise UserError(
                f"cannot write in --workdir={path}: {error.strerror}; choose another folder, or "
                "change its permissions"
            ) from error

    def _lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / LOCK, "a+")
        try:
            file_lock.acquire(file)
        except file_lock.LockHeldError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"another process trains in {self.path} ({holder}): wait for it or end it, or "
                "choose another --workdir"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        self._file = file

    def exists(self) -> bool:
        """Returns whether the locked folder still exists. Meaningful in process 0 only."""
        try:
            on_disk = os.stat(self.path / LOCK)
        except OSError:
            return self._file is None
        locked = os.fstat(self._file.fileno()) if self._file is not None else on_disk
        return (on_disk.st_dev, on_disk.st_ino) == (locked.st_dev, locked.st_ino)

    def write_error(self, needed: int) -> str:
        """Returns why about `needed` bytes cannot be written, or "" if they can (process 0 only).

        If the folder was removed, it is created and locked again.

        Raises:
            UserError: the folder was removed, and another run has locked the new one.
        """
        try:
            # If no file is open, the last attempt to lock the folder failed.
            if self._file is None or not self.exists():
                logging.warning("%s was removed during the run: it is created again", self.path)
                self.close()
                self._lock()
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"0")
            probe.unlink()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            return f"{error.strerror}: {error.filename or self.path}"
        if free < needed:
            return f"{free:,} bytes free, about {needed:,} needed"
        return ""

    def close(self) -> None:
        """Releases the lock."""
        if self._file is not None:
            file_lock.release(self._file)
            self._file = None
