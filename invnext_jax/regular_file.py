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
from collections.abc import Iterator
from typing import BinaryIO

# Errors that NumPy and the modules json and zipfile raise for damaged files. RuntimeError includes
# RecursionError, and NotImplementedError for unknown compressions; NumPy's parser of headers raises
# TypeError, SyntaxError and TokenError.
DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError),
    *(MemoryError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_CHUNK_BYTES = 2**20


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


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file of any size for reading.

    Raises:
      OSError: The file cannot be opened or is not a regular file, or its name is not valid.
    """
    try:
        number = open_number(path)
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


def check_archive_size(file: BinaryIO, max_bytes: int) -> None:
    """Checks the size of all members of a zip archive after decompression, by its directory.

    The position of the file is then at its start.

    Raises:
      ValueError: The archive is larger.
      BadZipFile: The file is not an archive.
    """
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes when decompressed")
    file.seek(0)
