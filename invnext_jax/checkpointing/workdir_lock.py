"""The run's folder: one run at a time in it, and whether it can be written now."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket

import jax
from absl import logging

from invnext_jax.errors import UserError

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Workdir:
    """Makes the folder and holds it, in process 0, until it is closed; the kernel lets go of a lock
    whose process is gone.

    Args:
        path: the run's folder.

    Raises:
        UserError: it cannot be written, or another process trains in it.
    """  # noqa: D205

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).absolute()
        self._file = None
        if jax.process_index() != 0:
            return
        try:
            self._hold()
        except OSError as error:
            raise UserError(
                f"cannot write in --workdir={path}: {error.strerror}; choose another folder, or "
                "change its permissions"
            ) from error

    def _hold(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / LOCK, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"another process trains in {self.path} ({holder}): wait for it or end it, or "
                "choose another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logging.warning("%s has no locks: see that no second run uses it", self.path)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        self._file = file

    def is_there(self) -> bool:
        """Whether the folder is still the one that was opened; process 0 alone looks."""
        try:
            there = os.stat(self.path / LOCK)
        except OSError:
            return self._file is None
        mine = os.fstat(self._file.fileno()) if self._file is not None else there
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def find_trouble(self, needed: int) -> str:
        """Why about `needed` bytes cannot be written now, or "". A folder that is gone comes back.

        Raises:
            UserError: the folder was removed, and another run is in the new one.
        """
        try:
            # Without a file, holding the folder failed the last time.
            if self._file is None or not self.is_there():
                logging.warning("%s was removed under the run: it is made again", self.path)
                self.close()
                self._hold()
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
        """Lets the next run in."""
        if self._file is not None:
            self._file.close()
            self._file = None
