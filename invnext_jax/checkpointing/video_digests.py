"""Digests of the video files of a manifest, to detect videos that were replaced in place.

A digest covers the size, the beginning and the end of a file (`video_io.digest_file`). The end of a
shard contains the positions of its records. Remote files and rendered worlds have no digests.

The metadata of a checkpoint contains the digests of some videos. Only videos that could be read at
both times are compared. Checkpoints of older versions have no digests.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from invnext_jax.data import video_io
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError

_FIELD = "video_digests"
_THREADS = 16  # hides the latency of network file systems
_GROUP = 16 * _THREADS  # number of files with a common time limit
_MAX_ROWS = 512  # maximum number of sampled rows


def list_files(manifest: Manifest) -> list[str]:
    """Returns the local videos and shards of a manifest in row order, without duplicates."""
    return [path for path in dict.fromkeys(manifest.paths) if _is_local(path)]


def digest_files(paths: Sequence[str], seconds: float) -> Iterator[str]:
    """Yields the digest of each local file; "" if it cannot be read.

    Args:
      paths: The files.
      seconds: Time limit for a group of files. Files of the group that have not been read by then
          count as unreadable, so that storage that hangs does not block the caller.
    """
    for start in range(0, len(paths), _GROUP):
        yield from _digest_group(paths[start : start + _GROUP], seconds)


def sample_digests(manifest: Manifest, seconds: float) -> list[dict[str, Any]]:
    """Returns the digests of the local files of a manifest, or of a sample if there are many.

    Sampled rows are evenly spaced in each source. The sample depends only on the order of the
    sources in the manifest.

    Args:
      manifest: The manifest.
      seconds: Time limit, see `digest_files`.

    Returns:
      A dict with `row`, `path` and `digest` for each file, as in `digest_files`.
    """
    rows: dict[str, int] = {}
    for row in _sample_rows(manifest.sources):
        if _is_local(path := manifest.paths[row]):
            rows.setdefault(path, row)
    digests = digest_files(list(rows), seconds)
    return [
        {"row": row, "path": path, "digest": digest}
        for (path, row), digest in zip(rows.items(), digests, strict=True)
    ]


def _sample_rows(sources: Sequence[str]) -> list[int]:
    """Returns all rows if they are few; otherwise evenly spaced rows of each source.

    The sampled rows of a source include its first and last row.
    """
    if len(sources) <= _MAX_ROWS:
        return list(range(len(sources)))
    numbers: dict[str, int] = {}
    source_b = np.fromiter((numbers.setdefault(s, len(numbers)) for s in sources), np.int64)
    order_b = np.argsort(source_b, kind="stable")
    count = max(1, _MAX_ROWS // len(numbers))
    sampled = [_spread(part, count) for part in _split_runs(order_b, source_b[order_b])]
    return [int(row) for row in _spread(np.concatenate(sampled), _MAX_ROWS)]


def _split_runs(row_b: np.ndarray, source_b: np.ndarray) -> list[np.ndarray]:
    return np.split(row_b, np.flatnonzero(np.diff(source_b)) + 1)


def _spread(row_b: np.ndarray, count: int) -> np.ndarray:
    return row_b[np.linspace(0, len(row_b) - 1, min(count, len(row_b))).astype(int)]


def _is_local(path: str) -> bool:
    return not video_io.is_remote(path) and not video_io.is_world(path)


def _digest_group(paths: Sequence[str], seconds: float) -> list[str]:
    found = [""] * len(paths)

    def digest_part(part: range) -> None:
        for number in part:
            found[number] = _digest(paths[number])

    # Daemon threads do not keep the process alive if a read never returns.
    threads = [
        threading.Thread(target=digest_part, args=[range(first, len(paths), _THREADS)], daemon=True)
        for first in range(min(_THREADS, len(paths)))
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(found)


def _digest(path: str) -> str:
    try:
        return video_io.digest_file(path)
    except (OSError, ValueError):  # ValueError: the path contains a null character
        return ""


def check_restored(folder: Any, saved: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Checks that a run reads the same videos as when it saved a checkpoint.

    Args:
      folder: the checkpoint's folder, for the message.
      saved: the metadata of the checkpoint, see `run_metadata.describe_run`.
      record: the metadata of this run, with the same manifests.

    Raises:
      UserError: a video differs.
    """
    if replaced := find_replaced(saved, record):
        others = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise UserError(
            f"the video {replaced[0]}{others} of {len(record[_FIELD])} that were compared changed "
            f"after the checkpoint {folder} was saved; restore the files, or choose another "
            "--workdir and set config.init_from to this run"
        )


def check_hosts(first: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Checks that a process has the same videos as process 0, whose metadata is `first`.

    Raises:
      UserError: a video differs.
    """
    if replaced := find_replaced(first, record):
        raise UserError(
            f"the video {replaced[0]} of this process differs from that of process 0; copy the "
            "same files to all hosts"
        )


def find_replaced(saved: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Returns the quoted paths of the videos or shards whose digests differ."""
    digests = {entry["row"]: entry["digest"] for entry in saved.get(_FIELD, ())}
    return [
        ascii(entry["path"])
        for entry in record[_FIELD]
        if entry["digest"] and digests.get(entry["row"], "") not in ("", entry["digest"])
    ]


def describe_unreadable(record: Mapping[str, Any]) -> str:
    """Returns a sentence about the videos that could not be read; "" if there are none."""
    unreadable = [ascii(entry["path"]) for entry in record[_FIELD] if not entry["digest"]]
    if not unreadable:
        return ""
    return (
        f"{len(unreadable)} of the {len(record[_FIELD])} videos that identify the data cannot be "
        f"read, such as {unreadable[0]}. Resumed runs do not compare them"
    )


def describe_copies(record: Mapping[str, Any]) -> str:
    """Returns a sentence about files with the same content as others; "" if there are none."""
    first: dict[str, str] = {}
    copies = [
        (entry["path"], original)
        for entry in record[_FIELD]
        if entry["digest"]
        and (original := first.setdefault(entry["digest"], entry["path"])) != entry["path"]
    ]
    if not copies:
        return ""
    return (
        f"warning: {len(copies)} of the {len(record[_FIELD])} videos that identify the data have "
        f"the same content as another one, such as {' and '.join(map(ascii, copies[0]))}. "
        "prepare_data.py index --remove_duplicates leaves out copies"
    )
