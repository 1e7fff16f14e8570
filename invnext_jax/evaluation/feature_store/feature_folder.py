"""Stores the features of one encoder and split in chunks of manifest rows.

A chunk consists of one .npy file for each kind of features, and an .npz file with row numbers,
labels and moments, which is written last and thereby marks the chunk as finished.

Shape key: b videos, v views.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from invnext_jax import atomic_file, regular_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation.feature_store import npz_file
from invnext_jax.evaluation.feature_store.chunked_array import (
    ChunkedArray,
    compute_checksum,
    write_array,
)
from invnext_jax.evaluation.feature_store.extraction import MOMENTS
from invnext_jax.evaluation.features import VideoFeatures

LABEL = "label_"
CHECKSUM = "checksum_"  # of the array of a kind of features
_META, _MAX_META_BYTES = "meta.json", 2**20
MAX_MARKER_BYTES = 2**32  # maximum size of an .npz file, before and after decompression


class FeatureFolder:
    """A folder with the chunks of one encoder and split.

    Attributes:
      folder: path of the folder.
      chunk_rows: number of manifest rows per chunk.
      chunks: indices of all chunks.
    """

    def __init__(self, folder: Path, chunk_rows: int, rows: int):
        """Creates the object; reads and writes no files.

        Args:
          folder: path of the folder.
          chunk_rows: number of manifest rows per chunk.
          rows: number of rows of the manifest.
        """
        self.folder, self.chunk_rows, self._rows = folder, chunk_rows, rows
        self.chunks = range(-(-rows // chunk_rows))

    def rows_of(self, chunk: int) -> range:
        """Returns the manifest rows of a chunk."""
        first = chunk * self.chunk_rows
        return range(first, min(first + self.chunk_rows, self._rows))

    def missing_chunks(self) -> list[int]:
        """Returns the indices of the chunks that must be extracted.

        These are unfinished chunks, damaged chunks, and chunks with videos that could not be read
        but may be readable now.
        """
        return [chunk for chunk in self.chunks if not self._is_finished(chunk)]

    def write(
        self,
        chunk: int,
        arrays: Mapping[str, np.ndarray],
        columns: Mapping[str, np.ndarray],
        *,
        complete: bool,
    ) -> None:
        """Writes a chunk.

        Args:
          chunk: index of the chunk.
          arrays: features [b v ...] by kind.
          columns: "index" [b], labels [b] with the prefix `LABEL`, and moments.
          complete: whether later commands may use the chunk. False if a video could not be read but
            may be readable later.
        """
        for kind, array in arrays.items():
            write_array(self._array(chunk, kind), array)
        kinds = np.array(list(arrays))
        checksums = {CHECKSUM + kind: np.array(compute_checksum(x)) for kind, x in arrays.items()}
        npz_file.write_arrays(
            self._marker(chunk), kinds=kinds, complete=np.array(complete), **checksums, **columns
        )

    def read(self) -> VideoFeatures:
        """Opens all chunks, which must be finished.

        Raises:
          UserError: a chunk is damaged, or no video could be read.
        """
        parts = [self._read_marker(chunk) for chunk in self.chunks]
        index_b = np.concatenate([part["index"] for part in parts])
        if not len(index_b):
            raise UserError(f"no video of {self.folder.name} could be read: check the manifest")
        kinds = [str(kind) for kind in parts[0]["kinds"]]
        labels = [name for name in parts[0] if name.startswith(LABEL)]
        # A chunk without readable videos has no moments.
        moments = [[part[name] for part in parts if name in part] for name in MOMENTS]
        return VideoFeatures(
            {kind: ChunkedArray([self._array(c, kind) for c in self.chunks]) for kind in kinds},
            {n.removeprefix(LABEL): np.concatenate([p[n] for p in parts]) for n in labels},
            index_b,
            *(np.sum(values, axis=0) if values else None for values in moments),
        )

    def _marker(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.npz"

    def _array(self, chunk: int, kind: str) -> Path:
        return self.folder / f"{chunk:06d}-{kind}.npy"

    def _is_finished(self, chunk: int) -> bool:
        if not os.path.isfile(self._marker(chunk)):
            return False
        try:
            found = self._read_marker(chunk)
            for kind in found["kinds"]:
                path = self._array(chunk, str(kind))
                array = ChunkedArray([path])
                if len(array) != len(found["index"]):
                    raise UserError(f"{path} has {len(array)} rows")
                _check_content(array, found.get(CHECKSUM + str(kind)), path)
        except UserError as error:
            print(f"{error}. Its features are extracted again.", flush=True)
            return False
        return bool(found["complete"])

    def _read_marker(self, chunk: int) -> dict[str, np.ndarray]:
        path = self._marker(chunk)
        try:
            with npz_file.open_arrays(path, MAX_MARKER_BYTES) as archive:
                found = {name: archive[name] for name in archive.files}
            _check_marker(found)
            return found
        except regular_file.DAMAGE as error:
            raise UserError(
                f"{path} cannot be read ({error}): all processes need the same --workdir on a "
                "shared disk"
            ) from error


def _check_content(array: ChunkedArray, expected: np.ndarray | None, path: Path) -> None:
    """Checks the elements of a stored array, which takes as long as reading it once.

    Raises:
      UserError: the elements are not those that were written. Files of older versions have no
        checksum; their elements must be finite numbers.
    """
    if expected is None:
        if array.dtype.kind != "f" or not np.isfinite(array.read()).all():
            raise UserError(f"{path} has values that are not finite numbers")
    elif not np.array_equal(expected, array.checksum()):
        raise UserError(f"{path} has been changed since it was written")


def _check_marker(found: Mapping[str, np.ndarray]) -> None:
    """Raises `ValueError` if the arrays of a marker have unexpected types or shapes."""
    kinds, index_b = found["kinds"], found["index"]
    if kinds.ndim != 1 or (kinds.size and kinds.dtype.kind != "U"):
        raise ValueError("the kinds of features are not names")
    if any(Path(str(kind)).name != kind for kind in kinds):  # these become names of files
        raise ValueError("a kind of features is not a valid file name")
    if index_b.ndim != 1 or index_b.dtype.kind not in "iu" or found["complete"].shape:
        raise ValueError("a column has an unexpected shape")


def open_folder(folder: Path, key: str, rows: int, chunk_rows: int) -> FeatureFolder:
    """Opens a folder of features. If its key differs from `key`, its files are deleted first.

    Args:
      folder: path of the folder.
      key: hash of everything that the features depend on.
      rows: number of rows of the manifest.
      chunk_rows: number of rows of a chunk in a new folder.

    Raises:
      UserError: the files cannot be deleted.
    """
    meta = {}
    with contextlib.suppress(*regular_file.DAMAGE):
        meta = json.loads(regular_file.read_bytes(folder / _META, _MAX_META_BYTES))
    if (
        not isinstance(meta, dict)
        or meta.get("key") != key
        or not _is_count(meta.get("chunk_rows"))
    ):
        if not atomic_file.remove_tree(folder):
            raise UserError(f"{folder} has deeply nested folders: delete it")
        meta = {"key": key, "chunk_rows": chunk_rows}
        atomic_file.write_text(folder / _META, json.dumps(meta) + "\n")
    for part in folder.glob(f".*{atomic_file.TEMPORARY_SUFFIX}"):  # left by killed processes
        atomic_file.remove_if_abandoned(part)
    return FeatureFolder(folder, meta["chunk_rows"], rows)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
