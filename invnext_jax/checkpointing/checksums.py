"""Checksums of a checkpoint: size and SHA-256 of each of its files, in `sums.json`.

They are written into the checkpoint's folder, and all of it is synced to disk, before the folder is
renamed to its final name. A finished checkpoint therefore always has them and survives a power
loss.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from invnext_jax.errors import UserError, summarize_error
from invnext_jax.multihost import consensus

CHECKSUMS_FILE = "sums.json"
INCOMPLETE = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax has not finished
# Errors of a process or a server, not of the data: too many open files, no permission, no answer.
_NOT_CORRUPTION = (
    *(errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
    *(errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT),
)
# A file system that cannot sync folders, or a file of Orbax that no longer exists.
_CANNOT_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOENT)
_THREADS = 4  # hashing releases the interpreter lock


class CorruptCheckpointError(Exception):
    """The checkpoint cannot be read, or its content is not what was written."""


READ_ERRORS = (
    UserError,
    CorruptCheckpointError,
)  # raised when reading a checkpoint, most severe first


@contextlib.contextmanager
def translate_read_errors(folder: pathlib.Path, checksums_match: bool) -> Iterator[None]:
    """Turns the errors that Orbax raises for corrupt files into `CorruptCheckpointError`.

    Args:
        folder: the checkpoint.
        checksums_match: whether its files agree with their checksums. Then the files are not the
            cause, and the error becomes a `UserError`.
    """
    try:
        yield
    except (UserError, CorruptCheckpointError):
        raise
    except Exception as error:
        # For a failed checksum of its own, Orbax raises a plain Exception.
        if not isinstance(error, (LookupError, TypeError, ValueError, OSError)) and (
            type(error) is not Exception
        ):
            raise
        if checksums_match:
            raise UserError(_unreadable(folder, summarize_error(error))) from error
        raise CorruptCheckpointError(summarize_error(error)) from error


def _unreadable(folder: pathlib.Path, reason: str) -> str:
    return (
        f"the checkpoint {folder} cannot be read: {reason}; it is not known to be damaged and "
        "stays where it is: fix the cause, then run the same command again"
    )


def write_checksums(folder: pathlib.Path) -> int:
    """Writes `sums.json` into a checkpoint's folder, which is otherwise complete, and syncs it.

    Returns:
        The total size of its files in bytes.

    Raises:
        OSError: a file cannot be read or written.
    """
    names = sorted(str(path.relative_to(folder)) for path in _item_files(folder))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        measured = pool.map(lambda name: _size_and_digest(folder / name), names)
        checksums = dict(zip(names, measured, strict=True))
        (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=0))
        list(pool.map(_sync_to_disk, [folder, *folder.rglob("*")]))
    return sum(size for size, _ in checksums.values())


def _item_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of the items. Orbax may still change the files next to the items' folders."""
    return (
        path
        for item in folder.iterdir()
        if item.is_dir()
        for path in item.rglob("*")
        if path.is_file() and path.name != "commit_success.txt"
    )


def _sync_to_disk(path: pathlib.Path) -> None:
    """Calls fsync on a file, or on a folder for the names in it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _size_and_digest(path: pathlib.Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def verify_checksums(folder: pathlib.Path) -> bool:
    """Compares a checkpoint with its checksums; each of several processes reads its share.

    Returns:
        Whether it has checksums.

    Raises:
        CorruptCheckpointError: a file is missing or has changed, found by any of the processes.
        UserError: a file cannot be opened now, for a reason that does not concern its content.
    """
    with consensus.all_hosts_agree(f"the checksums of {folder}", READ_ERRORS):
        if not folder.is_dir():
            raise UserError(
                f"this process does not see the checkpoint {folder}: mount the same file system on "
                "all hosts"
            )
        try:
            return _verify_share(folder)
        except OSError as error:
            raise UserError(_unreadable(folder, f"{error.filename}: {error.strerror}")) from error


def check_checksums_exist(record: Mapping[str, Any], has_checksums: bool) -> None:
    """Distinguishes a checkpoint that lost its checksums from one older than checksums.

    Args:
        record: the checkpoint's item `meta`.
        has_checksums: the result of `verify_checksums`.

    Raises:
        CorruptCheckpointError: it was saved with checksums and has none.
    """
    if record.get("sums") and not has_checksums:
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} is missing")


def _verify_share(folder: pathlib.Path) -> bool:
    try:
        checksums = json.loads((folder / CHECKSUMS_FILE).read_text())
        rows = sorted((name, size, digest) for name, (size, digest) in checksums.items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) in _NOT_CORRUPTION:
            raise
        raise CorruptCheckpointError(
            f"{CHECKSUMS_FILE} cannot be read: {summarize_error(error)}"
        ) from error
    if any(os.path.isabs(name) or ".." in pathlib.PurePath(name).parts for name, _, _ in rows):
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} names files outside the checkpoint")

    def find_problem(row: tuple[str, int, str]) -> str:
        name, size, digest = row
        try:
            if (folder / name).stat().st_size != size:
                return f"{name} has {(folder / name).stat().st_size} bytes, not {size}"
            return "" if _size_and_digest(folder / name)[1] == digest else f"{name} has changed"
        except OSError as error:
            if error.errno in _NOT_CORRUPTION:
                raise
            return f"{name}: {error.strerror}"

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        share = rows[jax.process_index() :: jax.process_count()]
        problem = next(filter(None, pool.map(find_problem, share)), "")
    if problem:
        raise CorruptCheckpointError(problem)
    return True


def remove_incomplete(folder: pathlib.Path) -> list[pathlib.Path]:
    """In process 0: removes the folders of unfinished saves, and returns them."""
    if jax.process_index() != 0 or not folder.is_dir():
        return []
    incomplete = sorted(path for path in folder.iterdir() if INCOMPLETE in path.name)
    for path in incomplete:
        shutil.rmtree(path, ignore_errors=True)
    return incomplete


def rename_corrupt(folder: pathlib.Path, steps: list[int]) -> None:
    """In process 0: renames corrupt checkpoints, so that their steps can be saved again."""
    for step in steps if jax.process_index() == 0 else ():
        target, number = folder / f"damaged-{step}", 1
        while target.exists():
            number += 1
            target = folder / f"damaged-{step}-{number}"
        (folder / str(step)).rename(target)
        logging.warning("%s is kept as %s", folder / str(step), target.name)
