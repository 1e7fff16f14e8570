"""Opens local files for reading. Named pipes, devices and files without content are refused."""

import errno
import io
import os
import stat

from invnext_jax.data import demux
from invnext_jax.workers.time_limits import reading

_RAW_READ = io.FileIO.read


def check_kind(status: os.stat_result, name: str | os.PathLike) -> None:
    """Checks that a status is that of a regular file, or of a folder, which cannot be opened.

    Opening a named pipe may block forever, and so may reading a device.

    Raises:
        OSError: It is another kind of file. `demux.error_kind` returns "missing" for it.
    """
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENXIO, "not a regular file", os.fspath(name))


def check_status(status: os.stat_result, name: str | os.PathLike) -> None:
    """Checks a status as `check_kind` does, and that the file is not empty.

    The files in /proc, some of which return I/O errors like those of a broken disk, have the size
    0.

    Raises:
        OSError: As in `check_kind`, or the file is empty. `demux.error_kind` returns "corrupt" for
            an empty file.
    """
    check_kind(status, name)
    if not status.st_size:
        raise OSError(demux.EMPTY_ERRNO, "empty file", os.fspath(name))


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
            check_status(os.stat(name), name)
            super().__init__(name)

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
