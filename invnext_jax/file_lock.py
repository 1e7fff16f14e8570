"""Exclusive file locks, so that only one run at a time writes to a folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from typing import IO

from absl import logging

from invnext_jax import regular_file

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
# `is_held` holds the lock for less than a millisecond. `open_locked` then tries again.
_ATTEMPTS, _PAUSE_SECONDS = 6, 0.01
_OWNER_BYTES = 2**12  # limit of the text that `open_locked` writes


class LockHeldError(Exception):
    """The lock is held by a different open file, usually in another process."""


def open_file(path: str | os.PathLike, mode: str) -> IO:
    """Opens a regular file like `open`, but does not follow a symbolic link.

    A folder from another machine may contain a link with the name of one of the run's files. A
    write through it would change a file outside the folder. A named pipe would block the run.

    Raises:
      OSError: `path` is a symbolic link or not a regular file, or cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        try:
            number = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP and os.path.islink(name):
                raise OSError(errno.ELOOP, "it is a symbolic link", name) from error
            raise
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "it is not a regular file", name)
        return number

    return open(path, mode, opener=opener)


def acquire(file: IO) -> None:
    """Locks an open file without waiting. Logs a warning if the file system does not support locks.

    Closing the file releases the lock. The kernel closes the file when the process ends.

    Raises:
      LockHeldError: a different open file holds the lock.
      OSError: locking fails for a different reason.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockHeldError(f"{file.name} is locked") from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logging.warning(
            "the file system of %s does not support locks: make sure that no second run writes "
            "there",
            file.name,
        )


def open_locked(path: str | os.PathLike) -> IO:
    """Opens and locks a file, and writes to it which process holds the lock.

    Raises:
      LockHeldError: a different open file holds the lock. The message describes its process.
      OSError: the file cannot be opened, locked or written.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(path, "a+"))
        try:
            _acquire_after_probe(file)
        except LockHeldError as error:
            owner = regular_file.read_tail(path, _OWNER_BYTES).decode(errors="replace")
            raise LockHeldError(owner.strip() or "unknown") from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        stack.pop_all()
    return file


def read_host(path: str | os.PathLike) -> str:
    """Returns the host of the process that locked a file last; "" if it is unknown."""
    try:
        host = json.loads(regular_file.read_tail(path, _OWNER_BYTES))["host"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return host if isinstance(host, str) and host.isprintable() else ""


def _acquire_after_probe(file: IO) -> None:
    """Calls `acquire`, and again if the lock may have been held by `is_held`."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(LockHeldError):
            return acquire(file)
        time.sleep(_PAUSE_SECONDS)
    return acquire(file)


def is_held(path: str | os.PathLike) -> bool:
    """Returns whether a process holds the lock of a file, which need not exist."""
    try:
        with open_file(path, "r") as file:
            # Two processes that call this function do not find each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:  # there is no such file, or it is a link or not a regular file
        if error.errno not in (errno.ENOENT, errno.ELOOP, *_UNSUPPORTED):
            raise
    return False


def wait(file: IO) -> None:
    """Locks an open file after waiting until no other process holds the lock.

    Does nothing if the file system does not support locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def release(file: IO) -> None:
    """Closes the file, which releases its lock."""
    file.close()
