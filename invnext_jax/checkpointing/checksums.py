"""Checksums of a checkpoint: the size and SHA-256 of each of its files, in `sums.json`.

Before the checkpoint's folder is renamed to its final name, the checksums are written into it and
the whole folder is synced to disk. A finished checkpoint therefore always has checksums and
survives a power loss.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from invnext_jax import atomic_file
from invnext_jax.checkpointing import storage
from invnext_jax.errors import UserError, summarize_error
from invnext_jax.field_checks import COUNT
from invnext_jax.multihost import consensus

CHECKSUMS_FILE = "sums.json"
# Errors that do not mean that the data is corrupt: too many open files, no permission, no memory,
# or a server that does not respond.
_NOT_CORRUPTION = (
    *(errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
    *(errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT),
)
_THREADS = 4  # hashing releases the GIL, so the threads run in parallel


class CorruptCheckpointError(Exception):
    """The checkpoint cannot be read, or its content is not what was written."""


READ_ERRORS = (
    UserError,
    CorruptCheckpointError,
)  # errors of reading a checkpoint, the most severe first


@contextlib.contextmanager
def translate_read_errors(folder: storage.Path, checksums_match: bool) -> Iterator[None]:
    """Turns the errors that Orbax raises for corrupt files into `CorruptCheckpointError`.

    Args:
      folder: the checkpoint's folder.
      checksums_match: whether the files match their checksums. If they do, the files are not
          corrupt, and the error becomes a `UserError`.
    """
    try:
        yield
    except (UserError, CorruptCheckpointError):
        raise
    except Exception as error:
        # Orbax raises a plain Exception if a checksum does not match, and TensorStore a plain
        # RuntimeError for names with surrogates.
        known = (LookupError, TypeError, ValueError, OSError, *storage.CLIENT_ERRORS)
        # Metadata is forged.
        known += (AttributeError, AssertionError, RecursionError, MemoryError)
        if not isinstance(error, known) and type(error) not in (Exception, RuntimeError):
            raise
        if checksums_match:
            raise UserError(_unreadable(folder, summarize_error(error))) from error
        raise CorruptCheckpointError(summarize_error(error)) from error


def _unreadable(folder: storage.Path, reason: str) -> str:
    return (
        f"the checkpoint {folder} cannot be read: {reason}. It is not marked as damaged and was "
        "not moved. Fix the cause and run the command again."
    )


def write_checksums(folder: storage.Path) -> int:
    """Writes `sums.json` into the folder of a complete checkpoint, and syncs the folder to disk.

    Returns:
      The total size of the checkpoint's files in bytes.

    Raises:
      OSError: a file cannot be read or written.
    """
    names = sorted(str(path.relative_to(folder)) for path in _item_files(folder))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        measured = pool.map(lambda name: _size_and_digest(folder / name), names)
        checksums = dict(zip(names, measured, strict=True))
        (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=0))
        if not storage.is_bucket(folder):
            list(pool.map(_sync, [folder, *folder.rglob("*")]))
    return sum(size for size, _ in checksums.values())


def _item_files(folder: storage.Path) -> Iterator[storage.Path]:
    """Yields the files of the items. Orbax may still change files outside these folders."""
    return (
        path
        for item in folder.iterdir()
        if storage.is_dir(item)
        for path in storage.list_files(item)
        if path.name != storage.COMMIT_FILE
    )


def _sync(path: storage.Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # Orbax may have removed a file
        atomic_file.sync(path)


def _size_and_digest(path: storage.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.seek(0, os.SEEK_END), digest


def verify_checksums(folder: storage.Path) -> bool:
    """Checks a checkpoint against its checksums. Each process reads a share of the files.

    Returns:
      Whether the checkpoint has checksums.

    Raises:
      CorruptCheckpointError: one of the processes found that a file is missing or has changed.
      UserError: a file cannot be opened, for a reason unrelated to its content.
    """
    with consensus.all_hosts_agree(f"the checksums of {folder}", READ_ERRORS):
        if not storage.is_dir(folder):
            raise UserError(
                f"this process cannot find the checkpoint {folder}: mount the same file system on "
                "all hosts"
            )
        try:
            with storage.translate_errors():
                if problem := storage.find_unreadable(folder):
                    raise CorruptCheckpointError(problem)
                return _verify_share(folder)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            raise UserError(_unreadable(folder, reason)) from error


def check_checksums_exist(record: Mapping[str, Any], has_checksums: bool) -> None:
    """Checks that a checkpoint still has its checksums if it was saved with them.

    Checkpoints of older versions of the package have no checksums and pass.

    Args:
      record: the checkpoint's item `meta`.
      has_checksums: the result of `verify_checksums`.

    Raises:
      CorruptCheckpointError: the checkpoint was saved with checksums and has none.
    """
    if record.get("sums") and not has_checksums:
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} is missing")


def _verify_share(folder: storage.Path) -> bool:
    try:
        checksums = storage.read_json(folder / CHECKSUMS_FILE)
        rows = sorted((name, size, digest) for name, (size, digest) in checksums.items())
        if not all(COUNT[0](size) and isinstance(digest, str) for _, size, digest in rows):
            raise TypeError("a size or a hash has a wrong type")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) in _NOT_CORRUPTION:
            raise
        raise CorruptCheckpointError(
            f"{CHECKSUMS_FILE} cannot be read: {summarize_error(error)}"
        ) from error
    _check_names([name for name, _, _ in rows])

    def find_problem(row: tuple[str, int, str]) -> str:
        name, size, digest = row
        try:
            if (found := storage.file_size(folder / name)) != size:
                return f"{name} has {found} bytes instead of {size}"
            return "" if _size_and_digest(folder / name)[1] == digest else f"{name} has changed"
        except OSError as error:
            if error.errno in _NOT_CORRUPTION:
                raise
            return f"{name}: {error.strerror or summarize_error(error)}"

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        share = rows[jax.process_index() :: jax.process_count()]
        problem = next(filter(None, pool.map(find_problem, share)), "")
    if problem:
        raise CorruptCheckpointError(problem)
    return True


def _check_names(names: Sequence[str]) -> None:
    if any(os.path.isabs(name) or ".." in pathlib.PurePath(name).parts for name in names):
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} lists files outside the checkpoint")
    if any(name != pathlib.PurePath(name).as_posix() for name in names):  # such as "a/./b"
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} lists names that are not normal paths")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} lists names with surrogates") from error
    if any("\0" in name for name in names):
        raise CorruptCheckpointError(f"{CHECKSUMS_FILE} lists names with NUL characters")


def remove_incomplete(folder: storage.Path) -> list[storage.Path]:
    """Removes the folders of unfinished saves (process 0 only) and returns their paths."""
    if jax.process_index() != 0 or not storage.is_dir(folder):
        return []
    incomplete = sorted(
        path
        for path in folder.iterdir()
        if storage.INCOMPLETE in path.name
        or (path.name.isdigit() and not storage.is_finished(path))
    )
    for path in incomplete:
        storage.remove_folder(path)
    return incomplete


def rename_corrupt(folder: storage.Path, steps: list[int]) -> None:
    """Renames corrupt checkpoints (process 0 only), so that their steps can be saved again."""
    for step in steps if jax.process_index() == 0 else ():
        target, number = folder / f"damaged-{step}", 1
        while storage.exists(target):
            number += 1
            target = folder / f"damaged-{step}-{number}"
        storage.move_folder(folder / str(step), target)
        logging.warning("%s is kept as %s", folder / str(step), target.name)
