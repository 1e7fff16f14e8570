"""Atomic, durable writes: write a temporary file in the same folder, sync it, then rename it.

The writer of a temporary file or folder holds a lock on it, which the kernel releases when the
writer ends. Other processes therefore remove only the temporary files of killed writers. On file
systems without locks, no temporary files are removed.
"""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".part"  # suffix of the hidden temporary files and folders
_LOCK = "lock"  # name of the locked file of a temporary folder
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The file system cannot sync folders, or the folder cannot be read.
_CANNOT_SYNC = (
    *(errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
    *(errno.EACCES, errno.EPERM),
)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of an empty temporary file, and renames it to `path` on exit.

    If an exception is raised, `path` is unchanged. The folder is created if it does not exist.

    Raises:
      OSError: The file cannot be created, synced or renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, lock = _create(path, is_folder=False)
    try:
        yield part
        replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


def remove_tree(folder: str | os.PathLike) -> bool:
    """Removes a folder with its content as far as possible.

    Returns:
      False if folders are nested too deeply for `shutil.rmtree`, which is recursive.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        return False
    return True


@contextlib.contextmanager
def temporary_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder next to `path`, and removes it on exit.

    Raises:
      OSError: The folder cannot be created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _create(path, is_folder=True)
    try:
        yield folder
    finally:
        remove_tree(folder)
        os.close(lock)


def _create(path: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Creates a temporary file or folder and locks it.

    Returns:
      Its path, and the file descriptor that holds the lock.
    """
    while True:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        if is_folder:
            part.mkdir()
        locked = part / _LOCK if is_folder else part
        file = os.open(locked, _CREATE, 0o666)
        # Another process may find the file before it is locked, and then removes it.
        if _lock(file) is not False and os.path.exists(locked):
            return part, file
        os.close(file)


def _lock(file: int) -> bool | None:
    """Locks a file without waiting; returns None if the file system does not support locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file atomically. Characters that UTF-8 cannot encode are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def replace(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Renames a file and syncs it to disk, so that the rename survives a power loss.

    Raises:
      OSError: The file cannot be synced or renamed.
    """
    sync(source)
    os.replace(source, target)
    sync(Path(target).parent)


def sync(path: str | os.PathLike) -> None:
    """Calls fsync on a file, or on a folder, which syncs the names of the files in it.

    Does nothing for a folder on a file system that cannot sync folders.

    Raises:
      OSError: The content cannot be written, for example because the disk is full.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def remove_temporary_files(path: str | os.PathLike) -> None:
    """Removes temporary files and folders left by processes killed while writing `path`."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        remove_if_abandoned(part)


def remove_if_abandoned(part: Path) -> None:
    """Removes a temporary file or folder of this user, unless its writer is alive."""
    is_folder = os.path.isdir(part) and not os.path.islink(part)
    try:
        file = os.open(part / _LOCK if is_folder else part, _OPEN)
    except OSError:  # removed by its writer, or not readable, or a symbolic link
        return
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or not _lock(file):
            return
        if is_folder:
            remove_tree(part)
        else:
            part.unlink(missing_ok=True)
    finally:
        os.close(file)
