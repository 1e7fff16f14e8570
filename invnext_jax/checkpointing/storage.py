"""Folders of runs on a local file system or in a Google Cloud Storage bucket (`gs://`).

A bucket has no folders, only objects whose names contain slashes. Objects cannot be renamed, so
Orbax marks a finished checkpoint with the object `commit_success.txt`, which it writes last. On a
local file system, Orbax instead renames the folder at the end.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any, TypeAlias

from etils import epath

from invnext_jax import atomic_file, regular_file
from invnext_jax.errors import UserError, summarize_error

Path: TypeAlias = pathlib.Path | epath.Path
COMMIT_FILE = "commit_success.txt"
INCOMPLETE = ".orbax-checkpoint-tmp"  # part of the name of a folder that Orbax has not finished
MAX_JSON_BYTES = 2**27
MAX_DEPTH = 32  # levels of folders in a checkpoint; Orbax makes three
_CHUNK = re.compile(r"[\d.]+|c")  # names of files with parts of arrays that are not in a database
_BUCKETS = "gs://"
try:  # these are not subclasses of OSError
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    CLIENT_ERRORS = (HttpError, GoogleAPIError, GoogleAuthError)
except ImportError:  # gcsfs is an optional package
    CLIENT_ERRORS = ()
_MARKER = ".folder"  # an object that makes an empty folder exist in a bucket


def open_path(name: str, path: str | pathlib.PurePath) -> Path:
    """Returns an absolute local path, or the path of a folder in a bucket.

    Args:
      name: the name of the option, for error messages.
      path: a local path or a `gs://` URL.

    Raises:
      UserError: the path is a URL of another kind or not UTF-8, or the package `gcsfs` is missing.
    """
    text = str(path)
    if not is_url(text):
        local = pathlib.Path(path).absolute()
        try:
            str(local).encode()
        except UnicodeEncodeError as error:  # TensorStore cannot open such a path
            raise UserError(f"{name}={str(local)!a} is not UTF-8: rename the folder") from error
        return local
    if not text.startswith(_BUCKETS) or not text.removeprefix(_BUCKETS).strip("/"):
        raise UserError(f"{name}={path} must be a local path or gs://BUCKET/FOLDER")
    bucket = epath.Path(text)
    try:
        with translate_errors():
            bucket.exists()
    except ImportError as error:
        raise UserError(f"{name}={path} needs the package gcsfs: pip install gcsfs") from error
    except OSError as error:
        raise UserError(f"{name}={path} cannot be read: {error.strerror}") from error
    return bucket


def is_url(path: str) -> bool:
    """Returns whether a path starts with a scheme, as in `gs://`."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.isalnum()


def is_bucket(path: Path) -> bool:
    """Returns whether a path is in a bucket."""
    return str(path).startswith(_BUCKETS)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Converts errors of the storage client into `OSError`s with a message."""
    try:
        yield
    except (OSError, *CLIENT_ERRORS) as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        raise OSError(number, summarize_error(error)) from error


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents. In a bucket, a marker object makes it exist."""
    if is_bucket(folder):
        (folder / _MARKER).write_text("")
    else:
        folder.mkdir(parents=True, exist_ok=True)


def exists(path: Path) -> bool:
    """Returns whether a file or a folder exists; False if this cannot be found out."""
    return path.exists() if is_bucket(path) else os.path.exists(path)


def is_dir(path: Path) -> bool:
    """Returns whether a path is a folder; False if this cannot be found out."""
    return path.is_dir() if is_bucket(path) else os.path.isdir(path)


def is_finished(checkpoint: Path) -> bool:
    """Returns whether a checkpoint whose folder has its final name is finished."""
    return not is_bucket(checkpoint) or exists(checkpoint / COMMIT_FILE)


def list_files(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders. Links to folders are not followed."""
    pending = [folder]
    while pending:
        for path in pending.pop().iterdir():
            if is_dir(path) and (is_bucket(path) or not path.is_symlink()):
                pending.append(path)
            else:
                yield path


def find_unreadable(folder: Path) -> str:
    """Returns why an entry of a checkpoint must not be read, as a sentence; "" if all may be read.

    Reading a named pipe would not return, and links to folders may form a loop. Links to files are
    followed, except to files in /proc, which have the size 0 and may have no end. Orbax and
    TensorStore read all files but those of arrays as a whole. Hashing sparse files may not end.
    """
    if is_bucket(folder):
        return ""
    for parent, folders, files in os.walk(folder):
        if os.path.relpath(parent, folder).count(os.sep) >= MAX_DEPTH:
            return f"it has folders at more than {MAX_DEPTH} levels"  # os.walk is recursive
        links = (name for name in folders if os.path.islink(os.path.join(parent, name)))
        for name in (*links, *files):
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):  # a missing file is reported by its checksum
                status, where = os.stat(path), os.path.relpath(path, folder)
                is_regular = name not in folders and stat.S_ISREG(status.st_mode)
                if not is_regular or (os.path.islink(path) and not status.st_size):
                    return f"{where} is not a regular file"
                if not is_array(path) and status.st_size > MAX_JSON_BYTES:
                    return f"{where} has {status.st_size:,} bytes, more than {MAX_JSON_BYTES:,}"
    return regular_file.describe_sparse(list_files(folder))


def is_array(path: str | pathlib.PurePath) -> bool:
    """Returns whether a file is one of a database, or contains a part of an array."""
    folder, name = os.path.split(path)
    return os.path.basename(folder) == "d" or bool(_CHUNK.fullmatch(name))


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: the file cannot be read, is not a regular file or is too large.
      ValueError: the file is not JSON, or is nested too deeply.
    """
    if not is_bucket(path):
        data = regular_file.read_bytes(path, MAX_JSON_BYTES)
    elif (size := file_size(path)) <= MAX_JSON_BYTES:
        data = path.read_bytes()
    else:
        raise OSError(errno.EFBIG, f"{size} bytes are more than {MAX_JSON_BYTES}", str(path))
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def file_size(path: Path) -> int:
    """Returns the size of a file in bytes."""
    status = path.stat()
    return status.length if is_bucket(path) else status.st_size


def remove_folder(folder: Path) -> None:
    """Removes a folder. Errors are ignored: the caller tries again at the next start."""
    if not is_bucket(folder):
        atomic_file.remove_tree(folder)
        return
    with contextlib.suppress(OSError), translate_errors():
        folder.rmtree()


def move_folder(source: Path, target: Path) -> None:
    """Renames a folder. In a bucket, copies its files except the one that marks it as finished."""
    if not is_bucket(source):
        source.rename(target)
        return
    (source / COMMIT_FILE).unlink(missing_ok=True)  # so that an interrupted copy is not restored
    for path in list(list_files(source)):
        path.copy(target / path.relative_to(source))
    source.rmtree()
