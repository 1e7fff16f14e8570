"""Opens what a manifest names: files, also of other machines by fsspec, shards, drawn worlds.

A name `protocol://...` is a remote file. Its bytes are fetched in blocks, each once as long as the
file is no longer than the cache; the decoder's pass over the packets reads all of it.

Shape key: t frames, h w pixels, c channels.
"""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TextIO

import fsspec
import numpy as np

from invnext_jax.data import decode, shards, transforms
from invnext_jax.data.frames import Window
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import urls

BLOCK_BYTES = 2**22  # of a remote file, fetched at once: most videos of some seconds
CACHED_BLOCKS = 16  # 64 MiB a worker
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(name: str) -> bool:
    """Whether a name stands for a file of a remote file system."""
    return _PROTOCOL.match(name) is not None


def protocol_of(name: str) -> str:
    """The "gs" of a remote file's name "gs://..."."""
    return name.partition("://")[0]


def check_protocol(name: str) -> None:
    """Checks that the package of a remote file system is installed.

    Raises:
        UserError: It is not, or there is no such file system; the text names the package.
    """
    try:
        fsspec.get_filesystem_class(protocol_of(name))
    except (ImportError, ValueError) as error:
        raise UserError(f"{name} cannot be opened, its file system is missing: {error}") from error


def join(folder: str, name: str) -> str:
    """The place of `name`, which may be absolute, in a local or remote folder."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder}/{name}" if is_remote(folder) else os.path.join(folder, name)


def absolute(name: str) -> str:
    """The same place, whatever the working folder."""
    return name if is_remote(name) or urls.is_world(name) else os.path.abspath(name)


def folder_of(name: str) -> str:
    """The folder of a local or remote file; local ones are made absolute."""
    if is_remote(name):
        return name.partition("?")[0].rpartition("/")[0]
    return os.path.abspath(os.path.dirname(name))


def open_text(name: str) -> TextIO:
    """Opens a local or remote text for the csv module.

    Raises:
        OSError: It cannot be opened.
        UserError: See `check_protocol`.
    """
    if not is_remote(name):
        return open(name, newline="", encoding="utf-8-sig")
    file = io.BufferedReader(open_remote(name))
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def hash_files(names: Sequence[str]) -> str:
    """SHA-256 of the bytes of local or remote files, one after the other.

    Raises:
        OSError: One cannot be opened.
        UserError: See `check_protocol`.
    """
    digest = hashlib.sha256()
    for name in names:
        with open_remote(name) if is_remote(name) else open(name, "rb") as file:
            while data := file.read(BLOCK_BYTES):
                digest.update(data)
    return digest.hexdigest()


def open_remote(name: str) -> io.RawIOBase:
    """Opens a remote file; whatever goes wrong then is an OSError.

    Raises:
        OSError: It cannot be opened.
        UserError: See `check_protocol`.
    """
    check_protocol(name)
    return _RemoteFile(name)


def read_clips(
    name: str,
    pick: Callable[[int], np.ndarray],
    windows: Sequence[Callable[[int, int], Window]],
    size: int,
    *,
    record: int | None = None,
    **options,
) -> np.ndarray:
    """Clips of what a manifest names; see `decode.read_clips`.

    A world's frames are cut as they are drawn, of any size, without `options`. `record` is as in
    `open_video`.

    Raises:
        BadVideo: There are none.
    """
    if urls.is_world(name):
        video_thwc = urls.render_frames(name)
        number_rt = np.asarray(pick(len(video_thwc)))
        drawn = [window(*video_thwc.shape[1:3]) for window in windows]
        return np.stack(
            [
                transforms.resize(video_thwc[number_t], window, size)
                for number_t, window in zip(number_rt, drawn, strict=True)
            ]
        )
    with open_video(name, record) as source:
        video = shards.name_video(name, record)
        return decode.read_clips(source, pick, windows, size, name=video, **options)


@contextlib.contextmanager
def open_video(name: str, record: int | None = None) -> Iterator[str | bytes | BinaryIO]:
    """What the decoder reads of a video that a manifest names.

    Args:
        name: A local or remote file.
        record: The video's place in it, if it is a shard.

    Raises:
        BadVideo: It cannot be opened.
    """
    if record is not None:
        yield shards.read_video(name, record)
        return
    if not is_remote(name):
        yield name
        return
    try:
        file = open_remote(name)
    except OSError as error:
        raise decode.BadVideo(f"{name}: {error}", decode.kind_of(error)) from error
    with file:
        yield file


class _RemoteFile(io.RawIOBase):
    """A remote file, of which only blocks that are asked for are fetched."""

    def __init__(self, name: str):
        self.name = name
        self._file = self._do(_open_blocks, name)

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise OSError(f"{type(error).__name__}: {error}") from error

    def readinto(self, buffer) -> int:
        data = self._do(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._do(self._file.seek, offset, whence)

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
    except ValueError:  # from a web server that gives files only as a whole
        with file:
            return io.BytesIO(file.read())
    file.seek(0)
    return file
