"""Arrays that are stored in chunks of rows on disk and memory-mapped while they are read.

Shape key: b rows.
"""

import math
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from invnext_jax import atomic_file, regular_file
from invnext_jax.errors import UserError


class ChunkedArray:
    """Read access to the concatenated rows of several .npy files.

    A file is mapped only during a read. Therefore neither the number of open files nor the resident
    memory grows with the number of chunks.

    Attributes:
      shape: shape of the whole array, [b ...].
      dtype: dtype of the elements.
    """

    def __init__(self, paths: Sequence[Path]):
        """Reads the headers.

        Args:
          paths: files whose arrays have the same dtype and differ only in the number of rows.

        Raises:
          UserError: a file is missing, damaged or different from the first one.
        """
        self._files = [(path, *_read_header(path)) for path in paths]
        counts = [shape[0] for _, shape, _, _ in self._files]
        self._starts = np.cumsum([0, *counts])
        _, shape, self.dtype, _ = self._files[0]
        self.shape = (int(self._starts[-1]), *shape[1:])
        for path, other, dtype, _ in self._files:
            if other[1:] != shape[1:] or dtype != self.dtype:
                raise UserError(
                    f"{path} has rows of shape {other[1:]} and dtype {dtype}, unlike {paths[0]}: "
                    f"delete the folder {path.parent}"
                )

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the whole array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def take(self, rows_b: np.ndarray) -> np.ndarray:
        """Reads rows into memory; rows of the same chunk are read together.

        Args:
          rows_b: int row numbers, in any order.

        Returns:
          The rows in the given order, [b ...].
        """
        rows_b = np.asarray(rows_b, np.int64)
        out = np.empty((len(rows_b), *self.shape[1:]), self.dtype)
        chunks_b = np.searchsorted(self._starts, rows_b, side="right") - 1
        order_b = np.argsort(chunks_b, kind="stable")
        bounds = np.flatnonzero(np.diff(chunks_b[order_b])) + 1
        for places in np.split(order_b, bounds):
            if len(places):
                chunk = chunks_b[places[0]]
                out[places] = self._map(chunk)[rows_b[places] - self._starts[chunk]]
        return out

    def read(self) -> np.ndarray:
        """Reads the whole array into memory."""
        return self.take(np.arange(len(self)))

    def checksum(self) -> int:
        """Computes the checksum of the rows; see `compute_checksum`. Reads all files."""
        value = 0
        for chunk, (_, shape, _, _) in enumerate(self._files):
            if math.prod(shape):
                value = compute_checksum(self._map(chunk), value)
        return value

    def _map(self, chunk: int) -> np.ndarray:
        path, shape, dtype, offset = self._files[chunk]
        with regular_file.open_regular(path) as file:
            return np.memmap(file, dtype, mode="r", offset=offset, shape=shape)


def compute_checksum(array: np.ndarray, start: int = 0) -> int:
    """Computes the CRC-32 of the elements of an array; `start` is that of the rows before it."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, start)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file atomically."""
    with atomic_file.atomic_path(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _read_header(path: Path):
    """Returns the shape and the dtype of a .npy file, and the offset of its data in bytes."""
    try:
        with regular_file.open_binary(path, sys.maxsize) as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        if not shape or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("unexpected shape")
        if math.prod(max(size, 1) for size in shape) * dtype.itemsize > sys.maxsize:
            raise ValueError("too many elements")
        expected = offset + math.prod(shape) * dtype.itemsize
        if fortran or dtype.kind != "f" or path.stat().st_size != expected:
            raise ValueError("unexpected size or type")
    except regular_file.DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}): delete its folder") from error
    return shape, dtype, offset
