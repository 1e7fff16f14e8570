"""Whether a checkpoint holds what was written: sizes and SHA-256 of its files, in `sums.json`.

The sums are written into the checkpoint's folder before that gets its final name, so a finished
checkpoint always has them.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from invnext_jax.errors import UserError

SUMS = "sums.json"
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax has not finished
_THREADS = 4  # hashing lets go of the interpreter


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Turns what Orbax raises for damaged files into `DamagedError`."""
    try:
        yield
    except (UserError, DamagedError):
        raise
    except (KeyError, ValueError, OSError) as error:
        raise DamagedError(in_short(error)) from error
    except Exception as error:
        if type(error) is not Exception:  # a failed checksum is a plain one
            raise
        raise DamagedError(in_short(error)) from error


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
    """
    problem, found = "", False
    try:
        found = _verify_share(folder)
    except DamagedError as error:
        problem = str(error)
    if jax.process_count() > 1:
        bad = int(np.sum(multihost_utils.process_allgather(np.int32(bool(problem)))))
        if bad and not problem:
            problem = f"{bad} other processes found damage"
    if problem:
        raise DamagedError(problem)
    return found


def _verify_share(folder: pathlib.Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text())
        items = sorted((name, size, digest) for name, (size, digest) in sums.items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, AttributeError) as error:
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
