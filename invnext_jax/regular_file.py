"""Opens files from untrusted folders. Only regular files are accepted.

A named pipe or a device in a data set would otherwise block a run, or fill its memory.
"""

import contextlib
import errno
import lzma
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

# Errors that NumPy and the modules json and zipfile raise for damaged files. RuntimeError includes
# RecursionError, and NotImplementedError for unknown compressions; NumPy's parser of headers raises
# TypeError, SyntaxError and TokenError.
DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(MemoryError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
MAX_DIRECTORY = 2**24  # bytes of the list of members of an archive; it needs 7 times more memory
_CHUNK_BYTES = 2**20
_BLOCK_BYTES = 512  # unit of `st_blocks` on all file systems
# Checkpoints and weights can hardly be compressed, so that compression by a file system passes.
_MAX_SPARSE = 100  # maximum ratio of the size of files and their space on the disk
_MAX_UNCHECKED = 2**30  # bytes of files that may have any ratio


def describe_missing(path: str | os.PathLike) -> str:
    """Returns why `os.path.exists` is False for a path, as a verb for a message."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "was missing"  # it was created meanwhile


def open_number(path: str | os.PathLike, flags: int = os.O_RDONLY) -> int:
    """Opens a file, as an `opener` of `open`, and does not wait for the writer of a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def open_regular(path: str | os.PathLike, flags: int = os.O_RDONLY) -> BinaryIO:
    """Opens a regular file of any size for reading. With `os.O_NOFOLLOW`, it must not be a link.

    Raises:
      OSError: The file cannot be opened or is not a regular file, or its name is not valid.
    """
    try:
        number = open_number(path, flags)
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        raise OSError(errno.EINVAL, "Invalid file name") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.ENXIO, "Not a regular file", os.fspath(path))
    return open(number, "rb")


@contextlib.contextmanager
def name_for_library(path: str | os.PathLike) -> Iterator[str]:
    """Yields a name by which a library opens a regular file that Python has opened.

    The library opens this file even if another one, such as a named pipe, replaces it meanwhile.

    Raises:
      OSError: As in `open_regular`.
    """
    with open_regular(path) as file:
        yield f"/dev/fd/{file.fileno()}"


@contextlib.contextmanager
def open_binary(path: str | os.PathLike, max_bytes: int) -> Iterator[BinaryIO]:
    """Opens a regular file for reading.

    Args:
      path: The file.
      max_bytes: Maximum size of the file.

    Raises:
      OSError: The file cannot be opened, is not a regular file or is too large, or its name is
          not valid.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise OSError(errno.EFBIG, f"Larger than {max_bytes} bytes", os.fspath(path))
        yield file


def read_bytes(path: str | os.PathLike, max_bytes: int) -> bytes:
    """Returns the content of a regular file.

    Raises:
      OSError: As in `open_binary`, or the file cannot be read.
    """
    parts, remaining = [], max_bytes
    with open_binary(path, max_bytes) as file:
        # `read(n)` allocates n bytes even if the file is shorter, so the file is read in chunks.
        while part := file.read(min(remaining, _CHUNK_BYTES)):
            parts.append(part)
            remaining -= len(part)
    return b"".join(parts)


def read_tail(path: str | os.PathLike, max_bytes: int) -> bytes:
    """Returns at most `max_bytes` from the end of a regular file of any size.

    Raises:
      OSError: As in `open_regular`, or the file cannot be read.
    """
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
        return file.read(max_bytes)


class FileSize(NamedTuple):
    """The size of a file, and its space on the disk without the holes of a sparse file, in bytes.

    If a file has several names, its space is 0 for all but the first.
    """

    size: int
    stored: int


def measure(paths: Iterable[Path]) -> dict[Path, FileSize]:
    """Returns the sizes of files. Missing files are left out, and links are followed."""
    statuses, sizes, seen = {}, {}, set()
    for path in paths:
        with contextlib.suppress(OSError, ValueError):  # it is missing, or its name is not valid
            statuses[path] = path.stat()
    # Some network file systems report 0 blocks for all files.
    has_blocks = any(status.st_blocks for status in statuses.values())
    for path, status in statuses.items():
        on_disk = status.st_blocks * _BLOCK_BYTES if has_blocks else status.st_size
        key = status.st_dev, status.st_ino
        sizes[path] = FileSize(status.st_size, 0 if key in seen else min(status.st_size, on_disk))
        seen.add(key)
    return sizes


def describe_sparse(paths: Iterable[Path]) -> str:
    """Returns that files are far larger than what is stored, as a sentence; "" if they are not.

    Sparse files, and links to one file, can have any size: a reader of them would not end, or fill
    the memory.
    """
    sizes = measure(paths).values()
    size, stored = sum(found.size for found in sizes), sum(found.stored for found in sizes)
    if size <= max(_MAX_UNCHECKED, _MAX_SPARSE * stored):
        return ""
    return (
        f"its files have {size:,} bytes, but need only {stored:,} bytes of the disk, because they "
        "are sparse or links to one file"
    )


class _SmallReads:
    """A file for `ZipFile`, which reads the directory of an archive at once."""

    def __init__(self, file: BinaryIO):
        self._read, self.seek, self.tell = file.read, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes."""
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {MAX_DIRECTORY} bytes")
        return self._read(size)


def check_archive_size(file: BinaryIO, max_bytes: int) -> None:
    """Checks the size of all members of a zip archive after decompression, by its directory.

    The position of the file is then at its start.

    Raises:
      ValueError: The archive is larger.
      BadZipFile: The file is not an archive, or its directory has more than `MAX_DIRECTORY` bytes.
    """
    with zipfile.ZipFile(_SmallReads(file)) as archive:
        if sum(member.file_size for member in archive.infolist()) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes when decompressed")
    file.seek(0)
