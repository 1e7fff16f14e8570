"""Opens the videos of a manifest: local files, remote files through fsspec, records of shards.

A name `protocol://...` is a remote file. It is fetched in blocks. Each block is fetched once unless
the file is larger than the cache. Indexing the packets reads the complete file.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO

import fsspec

from invnext_jax.data import demux, shards
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import urls
from invnext_jax.workers.read_clock import reading

BLOCK_BYTES = 2**22  # block size for remote files; about the size of a video of a few seconds
CACHED_BLOCKS = 16  # 64 MiB per worker
DIGEST_BYTES = 2**16  # number of bytes hashed at each end of a file
_RAW_READ = io.FileIO.read
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(name: str) -> bool:
    """Returns whether `name` refers to a file on a remote file system."""
    return _PROTOCOL.match(name) is not None


def is_world(name: str) -> bool:
    """Returns whether the name of a manifest or a video is a `world:` URL."""
    return name.startswith(urls.SCHEME)


def protocol_of(name: str) -> str:
    """Returns the protocol of a remote file's name, for example "gs" for "gs://..."."""
    return name.partition("://")[0]


def protocols_of(names: Iterable[str]) -> list[str]:
    """Returns the protocols of the remote files among `names`, without duplicates."""
    remote = (name for name in names if "://" in name and is_remote(name))
    return sorted({protocol_of(name) for name in remote})


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


def join(folder: str, name: str) -> str:
    """Joins a local or remote folder with a name, which may be absolute."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder}/{name}" if is_remote(folder) else os.path.join(folder, name)


def absolute(name: str) -> str:
    """Makes a local path absolute. Names of remote files and rendered worlds do not change."""
    return name if is_remote(name) or is_world(name) else os.path.abspath(name)


def folder_of(name: str) -> str:
    """Returns the folder of a local or remote file. Local folders are absolute."""
    if is_remote(name):
        return name.partition("?")[0].rpartition("/")[0]
    return os.path.abspath(os.path.dirname(name))


def open_text(name: str) -> TextIO:
    """Opens a local or remote text file for the csv module.

    Bytes that are not valid UTF-8 become surrogate escapes, as in file names.

    Raises:
        OSError: The file cannot be opened.
        UserError: As in `check_protocol`.
    """
    if not is_remote(name):
        return open(name, newline="", encoding="utf-8-sig", errors="surrogateescape")
    file = io.BufferedReader(open_remote(name))
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def hash_files(names: Sequence[str]) -> str:
    """Returns the SHA-256 of the concatenated bytes of local or remote files.

    Raises:
        OSError: A file cannot be opened.
        UserError: As in `check_protocol`.
    """
    digest = hashlib.sha256()
    for name in names:
        with open_remote(name) if is_remote(name) else open(name, "rb") as file:
            while data := file.read(BLOCK_BYTES):
                digest.update(data)
    return digest.hexdigest()


def open_remote(name: str) -> io.RawIOBase:
    """Opens a remote file; all its errors are raised as OSError.

    Raises:
        OSError: The file cannot be opened.
        UserError: As in `check_protocol`.
    """
    check_protocol(name)
    return _RemoteFile(name)


@contextlib.contextmanager
def open_source(name: str, record: int | None = None) -> Iterator[BinaryIO]:
    """Opens a video of a manifest as a source for `decode.open_video`.

    Args:
        name: Local or remote file, or a shard.
        record: Position of the video in the shard; None for a file.

    Yields:
        The open file, or a file in memory with the bytes of the record.

    Raises:
        BadVideo: The video cannot be opened; or, at the end of the `with` block, a read has failed.
    """
    if record is not None:
        yield _RecordFile(name, record)
        return
    try:
        file = open_remote(name) if is_remote(name) else _LocalFile(name)
    except OSError as error:
        raise _bad_video(name, error) from error
    except UserError:
        raise
    except ValueError as error:
        raise demux.BadVideo(f"{name!a}: no file can have this name", "missing") from error
    with file:
        try:
            yield file
        except (demux.BadVideo, ValueError, ArithmeticError):
            _check_reads(name, file)  # demuxers may report a failed read as a truncated file
            raise
        _check_reads(name, file)


def _check_reads(name: str, file: "_LocalFile | _RemoteFile") -> None:
    if file.read_error is not None:
        raise _bad_video(name, file.read_error) from file.read_error


def _bad_video(name: str, error: OSError) -> demux.BadVideo:
    return demux.BadVideo(f"{name}: {error.strerror or error}", demux.error_kind(error))


class _RecordFile(io.BytesIO):
    """The bytes of a video in a shard.

    Attributes:
        name: Name of the video in messages.
    """

    def __init__(self, path: str, record: int):
        super().__init__(shards.read_video(path, record))
        self.name = shards.name_video(path, record)


class _LocalFile(io.FileIO):
    """A local file whose read times are measured.

    Attributes:
        read_error: The first error of a read, or None.
    """

    def __init__(self, name: str):
        self.read_error: OSError | None = None
        with reading():
            super().__init__(name)

    def read(self, size: int = -1) -> bytes:
        try:
            with reading():
                return _RAW_READ(self, size)
        except OSError as error:
            self.read_error = self.read_error or error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return _seek(super().seek, offset, whence)


def _seek(seek: Callable[[int, int], int], offset: int, whence: int) -> int:
    """Seeks; returns a negative error number for invalid positions.

    Damaged files may contain such positions.
    """
    try:
        return seek(offset, whence)
    except (OSError, ValueError):
        return -errno.EINVAL


class _RemoteFile(io.RawIOBase):
    """A remote file that fetches only the blocks that are read.

    Attributes:
        read_error: The first error of a read, or None.
    """

    def __init__(self, name: str):
        self.name, self.read_error = name, None
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
        data = self._call(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return _seek(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


def _open_blocks(name: str) -> BinaryIO:
    system, path = fsspec.core.url_to_fs(name)
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
            return io.BytesIO(file.read())
    file.seek(0)
    return file


def digest_file(path: str | os.PathLike) -> str:
    """Returns a hash of the size, the beginning and the end of a local file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(0, size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()
