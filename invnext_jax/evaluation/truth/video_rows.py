"""Finds the rows of a manifest that the entries of other files describe."""

import os

from invnext_jax.data.manifest import Manifest

MAX_PARTS = 64  # maximum number of parts of an end of a path


class VideoRows:
    """Rows of the videos of a manifest by name.

    A name is the path relative to the folder of the manifest, the end of this path, either with or
    without the extension, or a path that ends with one of them. Names of several videos have no
    row.
    """

    def __init__(self, manifest: Manifest):
        folder = os.path.dirname(manifest.file) or "."
        self._paths = manifest.paths
        self._rows: dict[str, int | None] = {}
        self._parts_below: list[int] = []  # number of parts below the folder of the manifest
        for row, path in enumerate(manifest.paths):
            relative = os.path.relpath(path, folder) if os.path.isabs(path) else path
            parts = _split(relative)
            self._parts_below.append(len(parts))
            ends = _ends(parts)
            for key in {path, relative, *ends, *(os.path.splitext(end)[0] for end in ends)}:
                self._rows[key] = row if self._rows.get(key, row) == row else None

    def find(self, name: str) -> int | None:
        """Returns the row of a video; None if there is none, or several.

        A name may have more folders than the manifest, as in "/data/val/a.mp4" for "val/a.mp4". A
        name with another folder, such as "train/a.mp4", is that of another video.
        """
        if name in self._rows:
            return self._rows[name]
        parts = _split(name)
        row = next((self._rows[end] for end in _ends(parts) if end in self._rows), None)
        if row is None or len(parts) == 1:
            return row
        file = _split(self._paths[row])
        if os.path.splitext(file[-1])[0] == parts[-1]:
            file[-1] = parts[-1]
        own = file[-max(2, self._parts_below[row]) :]
        return row if parts == file[-len(parts) :] or parts[-len(own) :] == own else None


def _split(path: str) -> list[str]:
    """Splits a path into parts, without the root and leading ".."."""
    return [part for part in os.path.normpath(path).split("/") if part not in ("", ".", "..")]


def _ends(parts: list[str]) -> list[str]:
    """Returns the ends of a path, from the longest to the name of the file."""
    return ["/".join(parts[n:]) for n in range(-min(len(parts), MAX_PARTS), 0)]
