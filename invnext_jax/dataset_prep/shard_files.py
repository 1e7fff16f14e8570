"""Checks shards in worker processes, and reads and writes the small files next to them.

The small files may be on a remote file system.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from invnext_jax import atomic_file, json_file
from invnext_jax.data import shards, video_io
from invnext_jax.errors import UserError
from invnext_jax.video.demux import BadVideo

MAX_BYTES = 2**28  # a row of a report has about 100 bytes
Counter = Callable[[str | os.PathLike], int]  # see `open_counter`


@dataclasses.dataclass(frozen=True)
class CountRecords:
    """Counts the records of shards. It is called in a worker process."""

    def __call__(self, path: str) -> int | str:
        """Returns the number of records of a shard, or why it cannot be read."""
        try:
            return shards.count_records(path)
        except ValueError as error:
            return str(error)

    def is_valid(self, result: Any, *_: Any) -> bool:
        """Returns whether a result of the worker is a number of records, or a reason."""
        return isinstance(result, str) or (type(result) is int and result >= 0)


@contextlib.contextmanager
def open_counter() -> Iterator[Counter]:
    """Yields the function `count_records`, which calls a worker process.

    A footer may be tiny on the disk, but need any amount of memory after decompression. A shard
    that ends the process, or exceeds the time limit, is damaged.
    """
    with shards.open_worker(CountRecords(), "it needs too much memory or time") as count:

        def count_or_raise(path: str | os.PathLike) -> int:
            found = count(os.fspath(path))
            if isinstance(found, str):
                raise ValueError(found)
            return found

        yield count_or_raise


def check_readable(path: str) -> None:
    """Checks that a worker process can read the videos of all records of a shard.

    Raises:
      BadVideo: It cannot read one of them.
      ValueError: Its records cannot be counted.
    """
    with open_counter() as count, shards.open_digester() as digest:
        for record in range(count(path)):
            if not digest(path, record):
                raise BadVideo(f"{shards.name_video(path, record)}: it cannot be read", "corrupt")


@contextlib.contextmanager
def open_writer(path: str) -> Iterator[Callable[[bytes], None]]:
    """Yields a function that adds a record to a new shard.

    Raises:
      OSError: The shard cannot be written, for example because the disk is full.
    """
    from array_record.python import array_record_module

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except RuntimeError as error:  # the message of the system is part of a longer one
            causes = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS
            code = next((c for c in causes if os.strerror(c) in str(error)), errno.EIO)
            raise OSError(code, os.strerror(code), path) from error

    # One record per group, because training reads in random order. No compression, because the
    # video is already compressed.
    options = "group_size:1,uncompressed"
    writer = call(array_record_module.ArrayRecordWriter, path, options)
    try:
        yield functools.partial(call, writer.write)
    finally:
        call(writer.close)


def read_json(path: epath.Path, advice: str = "specify a new folder") -> Any:
    """Returns the contents of a local or remote JSON file in the folder of a data set.

    Raises:
      UserError: The file is missing, damaged, too large or not a regular file.
    """
    if not video_io.is_remote(os.fspath(path)):
        return json_file.read_value(path, advice, MAX_BYTES)
    try:
        if (size := path.stat().length) > MAX_BYTES:
            raise OSError(f"{size:,} bytes are more than {MAX_BYTES:,}")
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): {advice}") from error


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file, atomically if it is local."""
    if video_io.is_remote(os.fspath(path)):
        path.write_text(text)
    else:
        atomic_file.write_text(path, text)
