"""Opens local and remote files for reading.

Local files must be regular and not empty: named pipes and devices are rejected. A name
`protocol://...` denotes a remote file, which fsspec fetches in blocks. Each block is fetched once
unless the file is larger than the cache. Indexing the packets of a video reads the complete file.
"""

import contextlib
import errno
import functools
import io
import os
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from invnext_jax import regular_file
from invnext_jax.errors import UserError
from invnext_jax.video import demux
from invnext_jax.workers.time_limits import reading

BLOCK_BYTES = 2**22  # block size for remote files; about the size of a video of a few seconds
CACHED_BLOCKS = 16  # 64 MiB per worker
WEB_PROTOCOLS = ("http", "https")
# Maximum size of a file on a web server that does not support range requests.
MAX_STREAM_BYTES = 2**30
# Maximum size of a local file. /proc/kcore, a regular file, has the size of the address space.
MAX_FILE_BYTES = 2**40
_RAW_READ = io.FileIO.read


def bad_name(name: str, error: ValueError) -> demux.BadVideo:
    """Returns the error for a name with which no file can be opened."""
    reason = "no file can have this name"
    if isinstance(error, UnicodeEncodeError) and error.encoding.lower() != "utf-8":
        reason += f" in the encoding {error.encoding} of this locale (set PYTHONUTF8=1)"
    return demux.BadVideo(f"{name!a}: {reason}", "missing")


def check_kind(status: os.stat_result, name: str | os.PathLike) -> None:
    """Checks from its status that a file is a regular file or a folder.

    Opening a named pipe or reading a device may block forever. Opening a folder raises an error.

    Raises:
      OSError: It is another kind of file. `demux.error_kind` returns "missing" for it.
    """
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENXIO, "not a regular file", os.fspath(name))


def check_status(
    status: os.stat_result, name: str | os.PathLike, max_bytes: int = MAX_FILE_BYTES
) -> None:
    """Checks from its status that a file is a regular file or a folder, and is not empty.

    Files in /proc have the size 0. Reading some of them raises the same I/O errors as a broken
    disk, and others are almost endless.

    Raises:
      OSError: As in `check_kind`, or the file is empty or has more than `max_bytes` bytes.
          `demux.error_kind` returns "corrupt" for such files.
    """
    check_kind(status, name)
    if not status.st_size:
        raise OSError(demux.EMPTY_ERRNO, "empty file", os.fspath(name))
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", os.fspath(name))


class LocalFile(io.FileIO):
    """A local file whose read times are measured.

    Args:
      name: Path of the file.

    Attributes:
      read_error: The first error of a read, or None.

    Raises:
      OSError: The file cannot be opened, or as in `check_status`.
    """

    def __init__(self, name: str):
        self.read_error: OSError | None = None
        with reading():
            super().__init__(name, opener=regular_file.open_number)
            with contextlib.ExitStack() as stack:
                stack.callback(self.close)
                check_status(os.fstat(self.fileno()), name)
                stack.pop_all()

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes, or all bytes to the end of the file."""
        try:
            with reading():
                return _RAW_READ(self, size)
        except OSError as error:
            self.read_error = self.read_error or error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position; see `demux.seek`."""
        return demux.seek(super().seek, offset, whence)


def protocol_of(name: str) -> str:
    """Returns the protocol of a remote file's name, for example "gs" for "gs://..."."""
    return name.partition("://")[0]


def refuse_chain(name: str) -> None:
    """Raises `UserError` for chained names such as `zip://a::https://b`."""
    if "::" in name:
        raise UserError(
            f"{name} chains file systems with '::', which is not supported: specify a plain file"
        )


def check_protocol(name: str) -> None:
    """Checks that the package of a remote file system is installed.

    Raises:
      UserError: The package is not installed, the protocol is unknown, or the name is a chain of
          file systems.
    """
    refuse_chain(name)
    try:
        fsspec.get_filesystem_class(protocol_of(name))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{name} cannot be opened ({error}): install the package for its file system"
        ) from error


def open_remote(name: str) -> io.RawIOBase:
    """Opens a remote file; all its errors are raised as OSError.

    Raises:
      OSError: The file cannot be opened.
      UserError: As in `check_protocol`.
    """
    check_protocol(name)
    return _RemoteFile(name)


class _RemoteFile(io.RawIOBase):
    """A remote file that fetches only the blocks that are read.

    Attributes:
      read_error: The first error of a read, or None.
    """

    def __init__(self, name: str):
        self.name, self.read_error, self._file = name, None, None
        self._file = self._call(_open_blocks, name)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with reading():
                return function(*arguments)
        except OSError as error:
            self.read_error = self.read_error or error
            raise
        except Exception as error:  # each file system raises different exception types
            self.read_error = self.read_error or OSError(f"{type(error).__name__}: {error}")
            raise self.read_error from error

    def readinto(self, buffer) -> int:
        data = self._call(self._file.read, min(len(buffer), BLOCK_BYTES))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return demux.seek(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._file is not None:  # None if the file could not be opened
                self._file.close()


@functools.cache
def _client_options() -> dict[str, Any]:
    """Returns options with which fsspec's client for web servers limits the size of answers.

    It reads the answer to a request for a block as a whole. A server could send data without an
    end, or a compressed file, which is longer than the block after decompression.
    """
    import aiohttp  # an optional package, see `check_protocol`

    class LimitedResponse(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            try:
                return await read_answer(self.content.iter_any())
            except OSError:
                self.close()
                raise

    return {"client_kwargs": {"response_class": LimitedResponse}}


async def read_answer(parts: AsyncIterator[bytes]) -> bytes:
    """Joins the parts of a web server's answer to a request for a block.

    Raises:
      OSError: The answer is longer than a block.
    """
    data = bytearray()
    async for part in parts:
        data += part
        if len(data) > BLOCK_BYTES:
            reason = f"the server sent more than the {BLOCK_BYTES} bytes of a block"
            raise OSError(errno.EFBIG, reason)
    return bytes(data)


def _open_blocks(name: str) -> BinaryIO:
    is_web = protocol_of(name) in WEB_PROTOCOLS
    system, path = fsspec.core.url_to_fs(name, **(_client_options() if is_web else {}))
    if isinstance(system, LocalFileSystem):
        return LocalFile(path)
    file = system.open(
        path,
        "rb",
        block_size=BLOCK_BYTES,
        cache_type="blockcache",
        cache_options={"maxblocks": CACHED_BLOCKS},
    )
    try:
        file.seek(1)
    except ValueError:  # the web server does not support range requests
        with file:
            return io.BytesIO(_read_stream(file, name))
    file.seek(0)
    return file


def _read_stream(file: BinaryIO, name: str) -> bytes:
    """Reads a complete file. A server could send data without an end."""
    data = bytearray()
    while part := file.read(BLOCK_BYTES):
        data += part
        if len(data) > MAX_STREAM_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_STREAM_BYTES} bytes", name)
    return bytes(data)
