"""Exclusive file locks, so that only one run at a time writes to a folder."""

import errno
import fcntl
from typing import IO

from absl import logging

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class LockHeldError(Exception):
    """The lock is held by a different open file, usually in another process."""


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
