"""Opens the videos of a manifest: local files, remote files and records of shards.

The frame index of a local file is cached, so that the file is scanned once instead of for each
clip.
"""

import collections
import contextlib
import hashlib
import io
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, TextIO

from invnext_jax import csv_text
from invnext_jax.data import decode, index_files, shards
from invnext_jax.data import files as files_lib
from invnext_jax.errors import UserError
from invnext_jax.regular_file import open_regular
from invnext_jax.synthetic_world import urls
from invnext_jax.video import demux
from invnext_jax.video.frame_index import PacketIndex

MAX_FRAMES = 500_000  # total number of frames of the cached indexes; about 20 MiB
MAX_PATH_BYTES = 4096  # as on Linux
MAX_URL_BYTES = 8192
MAX_MANIFEST_BYTES = 4 * csv_text.MAX_SIZE  # a character has at most 4 bytes
DIGEST_BYTES = 2**16  # number of bytes hashed at each end of a file
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(name: str) -> bool:
    """Returns whether `name` refers to a file on a remote file system."""
    return _PROTOCOL.match(name) is not None


def is_world(name: str) -> bool:
    """Returns whether the name of a manifest or a video is a `world:` URL."""
    return name.startswith(urls.SCHEME)


def protocols_of(names: Iterable[str]) -> list[str]:
    """Returns the protocols of the remote files among `names`, without duplicates."""
    remote = (name for name in names if "://" in name and is_remote(name))
    return sorted({files_lib.protocol_of(name) for name in remote})


def join(folder: str, name: str) -> str:
    """Joins a local or remote folder with a name, which may be absolute."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder}/{name}" if is_remote(folder) else os.path.join(folder, name)


def check_length(name: str, where: str) -> None:
    """Raises `UserError` if a path or an address is too long. The message starts with `where`."""
    limit = MAX_URL_BYTES if is_remote(name) else MAX_PATH_BYTES
    size = len(name.encode(errors="surrogatepass"))
    if size > limit:
        raise UserError(
            f"{where}: the path {name[:40]!a}... has {size:,} bytes, more than {limit:,}: "
            "shorten or remove it"
        )


def absolute(name: str) -> str:
    """Makes a local path absolute. Names of remote files and rendered worlds do not change."""
    return name if is_remote(name) or is_world(name) else os.path.abspath(name)


def may_exist(name: str) -> bool:
    """Returns whether a local file exists, or True for remote files and rendered worlds."""
    return is_remote(name) or is_world(name) or os.path.exists(name)


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
      UserError: As in `files_lib.check_protocol`.
    """
    file = io.BufferedReader(files_lib.open_remote(name)) if is_remote(name) else open_regular(name)
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def hash_files(names: Sequence[str]) -> str:
    """Returns the SHA-256 of the concatenated bytes of local or remote manifests.

    Raises:
      OSError: A file cannot be opened, is empty (as those in /proc, which may never end), or has
          more than `MAX_MANIFEST_BYTES`.
      UserError: As in `files_lib.check_protocol`.
    """
    digest = hashlib.sha256()
    for name in names:
        with files_lib.open_remote(name) if is_remote(name) else open_regular(name) as file:
            if not is_remote(name):
                files_lib.check_status(os.fstat(file.fileno()), name, MAX_MANIFEST_BYTES)
            while data := file.read(files_lib.BLOCK_BYTES):
                digest.update(data)
    return digest.hexdigest()


class IndexCache:
    """Least recently used cache of the indexes of local files, for the threads of one process.

    Args:
      max_frames: Maximum total number of frames of the cached indexes. The most recent index is
          always kept.
    """

    def __init__(self, max_frames: int = MAX_FRAMES):
        self._max_frames, self._frames = max_frames, 0
        self._indexes: collections.OrderedDict[tuple[str, index_files.Version], PacketIndex] = (
            collections.OrderedDict()
        )
        self._stored: dict[str, str] = {}
        self._loaded: set[str] = set()
        self._lock = threading.RLock()

    def load(self, files: Sequence[str]) -> None:
        """Reads stored indexes, each file once. Files that cannot be read are ignored."""
        with self._lock:
            for file in files:
                if file not in self._loaded:
                    self._loaded.add(file)
                    self._stored |= index_files.read_stored(file)

    def get(self, path: str, version: index_files.Version) -> PacketIndex | None:
        """Returns the index of this version of a file, or None."""
        key = path, version
        with self._lock:
            if key in self._indexes:
                self._indexes.move_to_end(key)
                return self._indexes[key]
            text = self._stored.get(path)
        index = index_files.decode_index(text, version) if text else None
        if index is not None:
            self.put(path, version, index)
        return index

    def put(self, path: str, version: index_files.Version, index: PacketIndex) -> None:
        """Adds an index and removes the least recently used ones."""
        with self._lock:
            if (path, version) in self._indexes:
                return
            self._indexes[path, version] = index
            self._frames += len(index.times)
            while self._frames > self._max_frames and len(self._indexes) > 1:
                _, removed = self._indexes.popitem(last=False)
                self._frames -= len(removed.times)


CACHE = IndexCache()


@contextlib.contextmanager
def open_video(
    path: str,
    record: int | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[decode.VideoReader]:
    """Opens a video of a manifest with its cached index; see `decode.open_video`.

    Args:
      path: Local or remote file, or a shard.
      record: Position of the video in the shard; None for a file.
      start: Start in seconds after the first frame. None is the beginning.
      end: Exclusive end in seconds after the first frame. None is the end.

    Yields:
      The reader.

    Raises:
      BadVideo: The video cannot be opened or decoded.
    """
    with open_source(path, record) as source:
        version = index = None
        if isinstance(source, io.FileIO):  # a local file
            version = file_version(os.fstat(source.fileno()))
            index = CACHE.get(path, version)
        with decode.open_video(source, start=start, end=end, index=index) as video:
            if version is not None:
                CACHE.put(path, version, video.index)
            yield video


def file_version(status: os.stat_result) -> index_files.Version:
    """Returns the size and the modification time from the status of a file."""
    return status.st_size, status.st_mtime_ns


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
        file = files_lib.open_remote(name) if is_remote(name) else files_lib.LocalFile(name)
    except OSError as error:
        raise _bad_video(name, error) from error
    except UserError:
        raise
    except ValueError as error:
        raise files_lib.bad_name(name, error) from error
    with file:
        try:
            yield file
        except (demux.BadVideo, ValueError, ArithmeticError):
            _check_reads(name, file)  # demuxers may report a failed read as a truncated file
            raise
        _check_reads(name, file)


def _check_reads(name: str, file: io.RawIOBase) -> None:
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


def digest_file(path: str | os.PathLike) -> str:
    """Returns a hash of the size, the beginning and the end of a local file.

    Raises:
      OSError: The file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(0, size - DIGEST_BYTES))
        digest.update(file.read(DIGEST_BYTES))
    return digest.hexdigest()
