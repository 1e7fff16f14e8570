"""Finds the rows of a manifest that the entries of other files describe."""

import os
from collections.abc import Iterable

from invnext_jax.data.manifest import Manifest

MAX_PARTS = 8  # maximum number of parts of an end of a path; more would need much memory


class VideoRows:
    """Rows of the videos of a manifest by name.

    A name is the path relative to the folder of the manifest, or the end of this path, with or
    without the extension; or a path that ends with such a name. Ends of the paths of several videos
    have no row.
    """

    def __init__(self, manifest: Manifest):
        folder = os.path.dirname(manifest.file) or "."
        self._paths = manifest.paths
        self._rows: dict[str, int | None] = {}
        self._parts_below: list[int] = []  # number of parts below the folder of the manifest
        whole: dict[str, int | None] = {}
        for row, path in enumerate(manifest.paths):
            relative = os.path.relpath(path, folder) if os.path.isabs(path) else path
            parts = _split(relative)
            self._parts_below.append(len(parts))
            _add(self._rows, _ends(parts), row)
            _add(whole, (path, relative), row)
        self._rows |= whole  # "a.mp4" is not ambiguous if there is also "more/a.mp4"

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


def _add(rows: dict[str, int | None], names: Iterable[str], row: int) -> None:
    """Adds names with and without their extension; None is the row of names of several videos."""
    names = [*names]
    for key in {*names, *(os.path.splitext(name)[0] for name in names)}:
        rows[key] = row if rows.get(key, row) == row else None


def _split(path: str) -> list[str]:
    """Splits a path into parts, without the root and leading ".."."""
    return [part for part in os.path.normpath(path).split("/") if part not in ("", ".", "..")]


def _ends(parts: list[str]) -> list[str]:
    """Returns the ends of a path, from the longest to the name of the file."""
    return ["/".join(parts[n:]) for n in range(-min(len(parts), MAX_PARTS), 0)]
