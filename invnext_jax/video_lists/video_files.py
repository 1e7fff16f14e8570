"""Finds the files that the names in a list refer to."""

import collections
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from invnext_jax.data import video_io
from invnext_jax.errors import UserError
from invnext_jax.video_lists.folder_scan import scan_folder


def locate(folder: str, name: str, where: str) -> str:
    """Joins a folder and a name from a list.

    If there is no such file, variants of the name are tried: other Unicode normal forms and
    encodings, without surrounding spaces, and with slashes instead of backslashes.

    Args:
      folder: The folder.
      name: The name.
      where: Place of the name, for the message.

    Raises:
      UserError: The name is too long. The time of Unicode normalization is quadratic.
    """
    video_io.check_length(name, where)
    path = os.path.join(folder, name)
    ordinary = name.isascii() and "\\" not in name and name == name.strip()
    if ordinary or os.path.exists(path):
        return path
    slashes = name.strip().replace("\\", "/")
    names = [slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))]
    raw = os.fsencode(slashes)
    names.append(raw.decode("cp1252", errors="replace"))
    names.append(os.fsdecode(slashes.encode("latin-1", errors="replace")))
    paths = (os.path.join(folder, other) for other in names if "\0" not in other)
    return next(filter(os.path.exists, paths), path)


def check_names(names: Iterable[Any], where: str, field: str) -> None:
    """Checks the names of files in the entries of a JSON list.

    Args:
      names: Value of each entry.
      where: The list, for the message.
      field: The field that contains the names.

    Raises:
      UserError: A value is not text, or cannot be the name of a file.
    """
    for number, name in enumerate(names, start=1):
        if not _is_file_name(name):
            raise UserError(
                f'{where}, entry {number}: "{field}" must be the name of a file, of at most '
                f"{video_io.MAX_PATH_BYTES} bytes"
            )


def _is_file_name(name: Any) -> bool:
    try:
        valid = bool(name.strip()) and "\0" not in name
        return valid and len(name.encode()) <= video_io.MAX_PATH_BYTES
    except (AttributeError, UnicodeEncodeError):
        return False


class FileFinder:
    """Finds videos inside a folder by their file name without extension."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.abspath(folder)
        self._by_stem = collections.defaultdict(list)
        for file in scan_folder(folder).videos:
            self._by_stem[os.path.splitext(os.path.basename(file))[0]].append(file)

    def find(self, names: Sequence[str], class_name: str) -> list[str]:
        """Returns the files that a video may refer to; several if the names are ambiguous.

        Files in a folder named after the class are preferred, then files directly in `folder`. Two
        links to the same file are not ambiguous.

        Args:
          names: Possible names without extension, the preferred one first. A name may begin with
            folders, which must then be the end of the file's folder.
          class_name: Class of the video, or "".
        """
        folders = {class_name, class_name.replace(" ", "_")} - {""}
        found = [(name, self._find_name(name)) for name in names]
        in_class = [
            (name, [f for f in files if os.path.basename(os.path.dirname(f)) in folders])
            for name, files in found
        ]
        return next((self._drop_links(*pair) for pair in in_class + found if pair[1]), [])

    def _find_name(self, name: str) -> list[str]:
        files = self._by_stem.get(os.path.basename(name), ())
        end = os.path.join(os.sep, os.path.normpath(name))
        return [file for file in files if os.path.splitext(file)[0].endswith(end)]

    def _drop_links(self, name: str, files: list[str]) -> list[str]:
        """Returns the files directly in the folder if there are any, each file once."""
        named = os.path.join(self.folder, os.path.normpath(name))
        files = [file for file in files if os.path.splitext(file)[0] == named] or files
        first = {}
        for file in files if len(files) > 1 else ():
            first.setdefault(os.path.realpath(file), file)
        return list(first.values()) or files


def describe_problem(files: Sequence[str], names: Iterable[str]) -> str:
    """Returns a message that a video has no file or several; "" if it has one.

    Args:
      files: Output of `FileFinder.find`.
      names: Names of the video.
    """
    if len(files) == 1:
        return ""
    name = " or ".join(names)
    if not files:
        return f"no video file is named {name}"
    shown = ", ".join(map(ascii, files[:3])) + (", ..." if len(files) > 3 else "")
    return (
        f"{len(files)} video files are named {name} ({shown}): set --videos to the folder of one "
        "of them, or add the extension"
    )
