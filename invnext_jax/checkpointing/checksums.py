"""Whether a checkpoint holds what was written: sizes and SHA-256 of its files, in `sums.json`.

The sums are written into the checkpoint's folder, and all of it put on the disk, before that gets
its final name: a finished checkpoint always has them, and outlasts a loss of power.
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

SUMS = "sums.json"
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax has not finished
# Of a process or a server: too many open files, no permission, no answer.
_NOT_DAMAGE = (
    *(errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
    *(errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT),
)
# Of a file system that cannot do so for folders; of a file of Orbax's own that is gone.
_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOENT)
_THREADS = 4  # hashing lets go of the interpreter


class CorruptCheckpointError(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


KINDS = (
    UserError,
    CorruptCheckpointError,
)  # what reading a checkpoint may end in, the gravest first


@contextlib.contextmanager
def translate_read_errors(folder: pathlib.Path, is_whole: bool) -> Iterator[None]:
    """Turns what Orbax raises for damaged files into `CorruptCheckpointError`.

    Args:
        folder: the checkpoint.
        is_whole: whether its files agree with their sums: then they are not to blame, and what is
            raised becomes a `UserError`.
    """
    try:
        yield
    except (UserError, CorruptCheckpointError):
        raise
    except Exception as error:
        # A failed checksum is a plain one.
        if not isinstance(error, (LookupError, TypeError, ValueError, OSError)) and (
            type(error) is not Exception
        ):
            raise
        if is_whole:
            raise UserError(_unreadable(folder, summarize_error(error))) from error
        raise CorruptCheckpointError(summarize_error(error)) from error


def _unreadable(folder: pathlib.Path, reason: str) -> str:
    return (
        f"the checkpoint {folder} cannot be read: {reason}; it is not known to be damaged and "
        "stays where it is: look for the cause, then give the same command again"
    )


def write_checksums(folder: pathlib.Path) -> int:
    """Writes `sums.json` into a checkpoint's folder that is complete but for it.

    Returns:
        Bytes of all its files.

    Raises:
        OSError: a file cannot be read or written.
    """
    names = sorted(str(path.relative_to(folder)) for path in _files_of_items(folder))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = dict(zip(names, pool.map(lambda name: _measure(folder / name), names), strict=True))
        (folder / SUMS).write_text(json.dumps(sums, indent=0))
        list(pool.map(_put_on_disk, [folder, *folder.rglob("*")]))
    return sum(size for size, _ in sums.values())


def _files_of_items(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files of the items; Orbax may still touch those beside them, which hold no data."""
    return (
        path
        for item in folder.iterdir()
        if item.is_dir()
        for path in item.rglob("*")
        if _is_data(path)
    )


def _is_data(path: pathlib.Path) -> bool:
    return path.is_file() and path.name != "commit_success.txt"


def _put_on_disk(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, would outlast a loss of power."""
    try:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _measure(path: pathlib.Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def verify_checksums(folder: pathlib.Path) -> bool:
    """Compares a checkpoint with its sums; of several processes, each reads its share.

    Returns:
        Whether it has sums.

    Raises:
        CorruptCheckpointError: a file is missing or another one, here or on another process.
        UserError: a file may not or cannot be opened now, which says nothing of what it holds.
    """
    with consensus.all_hosts_agree(f"the sums of {folder}", KINDS):
        if not folder.is_dir():
            raise UserError(
                f"the checkpoint {folder} is not there for this process: do all hosts see the same "
                "file system?"
            )
        try:
            return _verify_share(folder)
        except OSError as error:
            raise UserError(_unreadable(folder, f"{error.filename}: {error.strerror}")) from error


def check_checksums_exist(record: Mapping[str, Any], has_sums: bool) -> None:
    """Tells a checkpoint that lost its sums from one of before there were any.

    Args:
        record: what the checkpoint's item `meta` holds.
        has_sums: what `verify_checksums` gave.

    Raises:
        CorruptCheckpointError: it was saved with sums.
    """
    if record.get("sums") and not has_sums:
        raise CorruptCheckpointError(f"{SUMS} is missing")


def _verify_share(folder: pathlib.Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text())
        items = sorted((name, size, digest) for name, (size, digest) in sums.items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) in _NOT_DAMAGE:
            raise
        raise CorruptCheckpointError(f"{SUMS} cannot be read: {summarize_error(error)}") from error
    if any(os.path.isabs(name) or ".." in pathlib.PurePath(name).parts for name, _, _ in items):
        raise CorruptCheckpointError(f"{SUMS} names files outside the checkpoint")

    def compare(item: tuple[str, int, str]) -> str:
        name, size, digest = item
        try:
            if (folder / name).stat().st_size != size:
                return f"{name} has {(folder / name).stat().st_size} bytes, not {size}"
            return "" if _measure(folder / name)[1] == digest else f"{name} has changed"
        except OSError as error:
            if error.errno in _NOT_DAMAGE:
                raise
            return f"{name}: {error.strerror}"

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        share = items[jax.process_index() :: jax.process_count()]
        problem = next(filter(None, pool.map(compare, share)), "")
    if problem:
        raise CorruptCheckpointError(problem)
    return True


def remove_incomplete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Removes what saves left that did not finish, in process 0 alone; gives what it removed."""
    if jax.process_index() != 0 or not folder.is_dir():
        return []
    left = sorted(path for path in folder.iterdir() if HALF_WRITTEN in path.name)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def rename_corrupt(folder: pathlib.Path, steps: list[int]) -> None:
    """Renames damaged checkpoints, in process 0 alone, so that their steps can be saved again."""
    for step in steps if jax.process_index() == 0 else ():
        target, number = folder / f"damaged-{step}", 1
        while target.exists():
            number += 1
            target = folder / f"damaged-{step}-{number}"
        (folder / str(step)).rename(target)
        logging.warning("%s is kept as %s", folder / str(step), target.name)
