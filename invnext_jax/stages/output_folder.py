"""A folder with the outputs of a frozen network for the clips of a run, one file per clip.

A file starts with a hash of the clip and of everything else that the outputs depend on, and with a
checksum of the outputs, which follow as raw arrays. A file with another hash, checksum or size
counts as missing. Files are written atomically, so that several runs may use a folder, also at the
same time. Links are not followed.
"""

import functools
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from invnext_jax import atomic_file, regular_file
from invnext_jax.errors import UserError
from invnext_jax.json_file import hash_json

_DESCRIPTION, _MAX_DESCRIPTION_BYTES = "outputs.json", 2**20
_FILE = re.compile(r"\d{8,}\.outputs")
_CHECKSUM_BYTES = 4
_HEADER_BYTES = hashlib.sha256().digest_size + _CHECKSUM_BYTES
_READ = os.O_RDONLY | os.O_NOFOLLOW


class OutputFolder:
    """Reads and writes the outputs for single clips. Its methods may be called by several threads.

    Attributes:
      folder: path of the folder.
      shapes: shape and dtype of the outputs for a clip, by name.
      clip_bytes: bytes of a file.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        described: Mapping[str, Any],
        option: str,
    ):
        """Opens a folder, which is created if it does not exist.

        Args:
          folder: path of the folder.
          shapes: shape and dtype of the outputs for a clip, by name.
          described: everything that the outputs depend on, except the clips, as JSON.
          option: name of the option that sets the folder, for errors.

        Raises:
          UserError: the folder has outputs with another description, has other files, or cannot be
            read or written.
        """
        described = json.loads(json.dumps({**described, "outputs": list(shapes)}))
        self.folder, self.shapes = folder, shapes
        sizes = (math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())
        self.clip_bytes = _HEADER_BYTES + sum(sizes)
        self._key = hash_json(described).encode()
        try:
            self._open(described, f"{option}={str(folder)!r}")
        except OSError as error:
            raise UserError(
                f"{option}={str(folder)!r} cannot be used ({error.strerror or error}): set it to a "
                "folder that you can write"
            ) from error

    def hash_clip(self, video_thwc: np.ndarray) -> bytes:
        """Returns the hash that identifies the outputs for a clip, uint8 [t h w c]."""
        return hashlib.sha256(self._key + np.ascontiguousarray(video_thwc).data).digest()

    def read(self, row: int, clip_hash: bytes, outputs: Mapping[str, np.ndarray]) -> bool:
        """Reads the outputs for a clip into arrays.

        Args:
          row: row of the video in the manifest.
          clip_hash: output of `hash_clip`.
          outputs: contiguous arrays with the shapes and dtypes of the outputs, by name.

        Returns:
          Whether the arrays have the stored outputs. If the file is missing or damaged, or belongs
          to another clip, their values are undefined.
        """
        try:
            with regular_file.open_regular(self._path(row), _READ) as file:
                if os.fstat(file.fileno()).st_size != self.clip_bytes:
                    return False
                if file.read(len(clip_hash)) != clip_hash:
                    return False
                checksum, value = file.read(_CHECKSUM_BYTES), 0
                for name in self.shapes:
                    content = _as_bytes(outputs[name])
                    if file.readinto(content) != len(content):
                        return False
                    value = zlib.crc32(content, value)
                return checksum == _encode(value)
        except OSError:
            return False

    def write(self, row: int, clip_hash: bytes, outputs: Mapping[str, np.ndarray]) -> None:
        """Writes the outputs for a clip atomically; see `read`.

        Raises:
          OSError: the file cannot be written.
        """
        contents = [_as_bytes(outputs[name]) for name in self.shapes]
        checksum = functools.reduce(lambda value, content: zlib.crc32(content, value), contents, 0)
        with atomic_file.atomic_path(self._path(row)) as part, part.open("wb") as file:
            file.writelines((clip_hash, _encode(checksum), *contents))

    def count_files(self) -> int:
        """Returns the number of files of the right size. Their contents are not checked."""
        with os.scandir(self.folder) as entries:
            return sum(
                _FILE.fullmatch(entry.name) is not None
                and entry.stat(follow_symlinks=False).st_size == self.clip_bytes
                for entry in entries
            )

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:08d}.outputs"

    def _open(self, described: Mapping[str, Any], option: str) -> None:
        """Writes the description of a new folder, or compares that of an existing one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _DESCRIPTION
        if not os.path.lexists(path):
            names = [name for name in os.listdir(self.folder) if not name.startswith(".")]
            if names:
                raise UserError(
                    f"{option} has no {_DESCRIPTION}, but other files, such as {names[0]!a}: set "
                    "it to a new folder"
                )
            atomic_file.write_text(path, json.dumps(described, indent=1) + "\n")
        try:
            with regular_file.open_regular(path, _READ) as file:
                saved = json.loads(file.read(_MAX_DESCRIPTION_BYTES))
            if not isinstance(saved, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): delete the folder") from error
        changed = [
            f"{name} {str(saved.get(name))[:80]!a}, but this run has {str(value)[:80]!a}"
            for name, value in described.items()
            if saved.get(name) != value
        ]
        if changed:
            others = f" and {len(changed) - 1} more differences" if changed[1:] else ""
            raise UserError(
                f"{option} has outputs for {changed[0]}{others}: set it to another folder"
            )
        for part in self.folder.glob(f".*{atomic_file.TEMPORARY_SUFFIX}"):
            atomic_file.remove_if_abandoned(part)


def _as_bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _encode(checksum: int) -> bytes:
    return checksum.to_bytes(_CHECKSUM_BYTES, "big")
