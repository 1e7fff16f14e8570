"""Whether a checkpoint holds what was written: sizes and SHA-256 of its files, in `sums.json`.

The sums are written into the checkpoint's folder before that gets its final name, so a finished
checkpoint always has them.
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
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from invnext_jax.errors import UserError

SUMS = "sums.json"
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax has not finished
# Of a process or a server: too many open files, no permission, no answer.
_NOT_DAMAGE = (
    *(errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
    *(errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT),
)
_THREADS = 4  # hashing lets go of the interpreter


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


@contextlib.contextmanager
def damage(folder: pathlib.Path, is_whole: bool) -> Iterator[None]:
    """Turns what Orbax raises for damaged files into `DamagedError`.

    Args:
        folder: the checkpoint.
        is_whole: whether its files agree with their sums: then they are not to blame, and what is
            raised becomes a `UserError`.
    """
    try:
        yield
    except (UserError, DamagedError):
        raise
    except Exception as error:
        # A failed checksum is a plain one.
        if not isinstance(error, (LookupError, TypeError, ValueError, OSError)) and (
            type(error) is not Exception
        ):
            raise
        if is_whole:
            raise UserError(_unreadable(folder, in_short(error))) from error
        raise DamagedError(in_short(error)) from error


def _unreadable(folder: pathlib.Path, reason: str) -> str:
    return (
        f"the checkpoint {folder} cannot be read: {reason}; it is not known to be damaged and "
        "stays where it is: look for the cause, then give the same command again"
    )


def in_short(error: Exception) -> str:
    """The error's type and the start of its first line."""
    return f"{type(error).__name__}: {str(error)[:160]}".partition("\n")[0]


def write_sums(folder: pathlib.Path) -> int:
    """Writes `sums.json` into a checkpoint's folder that is complete but for it.

    Returns:
        Bytes of all its files.

    Raises:
        OSError: a file cannot be read or written.
    """
    names = sorted(str(path.relative_to(folder)) for path in _files_of_items(folder))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = dict(zip(names, pool.map(lambda name: _measure(folder / name), names), strict=True))
    with open(folder / SUMS, "w") as file:
        json.dump(sums, file, indent=0)
        file.flush()
        os.fsync(file.fileno())
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


def _measure(path: pathlib.Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def verify_sums(folder: pathlib.Path) -> bool:
    """Compares a checkpoint with its sums; of several processes, each reads its share.

    Returns:
        Whether it has sums.

    Raises:
        DamagedError: a file is missing or another one, here or on another process.
        UserError: a file may not or cannot be opened now, which says nothing of what it holds.
    """
    problem, found, kind = "", False, 0
    try:
        found = _verify_share(folder)
    except DamagedError as error:
        problem, kind = str(error), 1
    except OSError as error:
        problem, kind = f"{error.filename}: {error.strerror}", 2
    if jax.process_count() > 1:
        kinds = multihost_utils.process_allgather(np.int32(kind))
        kind = int(np.max(kinds))
        problem = problem or f"{np.sum(kinds > 0)} other processes found it so"
    if kind == 2:
        raise UserError(_unreadable(folder, problem))
    if kind:
        raise DamagedError(problem)
    return found


def check_sums_are_there(record: Mapping[str, Any], has_sums: bool) -> None:
    """Tells a checkpoint that lost its sums from one of before there were any.

    Args:
        record: what the checkpoint's item `meta` holds.
        has_sums: what `verify_sums` gave.

    Raises:
        DamagedError: it was saved with sums.
    """
    if record.get("sums") and not has_sums:
        raise DamagedError(f"{SUMS} is missing")


def _verify_share(folder: pathlib.Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text())
        items = sorted((name, size, digest) for name, (size, digest) in sums.items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) in _NOT_DAMAGE:
            raise
        raise DamagedError(f"{SUMS} cannot be read: {in_short(error)}") from error
    if any(os.path.isabs(name) or ".." in pathlib.PurePath(name).parts for name, _, _ in items):
        raise DamagedError(f"{SUMS} names files outside the checkpoint")

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
        raise DamagedError(problem)
    return True


def remove_half_written(folder: pathlib.Path) -> list[pathlib.Path]:
    """Removes what saves left that did not finish, in process 0 alone; gives what it removed."""
    if jax.process_index() != 0 or not folder.is_dir():
        return []
    left = sorted(path for path in folder.iterdir() if HALF_WRITTEN in path.name)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def set_aside(folder: pathlib.Path, steps: list[int]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    for step in steps if jax.process_index() == 0 else ():
        target, number = folder / f"damaged-{step}", 1
        while target.exists():
            number += 1
            target = folder / f"damaged-{step}-{number}"
        (folder / str(step)).rename(target)
        logging.warning("%s is kept as %s", folder / str(step), target.name)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("invnext_jax: damaged checkpoints are set aside")
