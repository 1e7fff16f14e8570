"""Digests of the files behind a manifest, which show that videos were replaced in place.

A digest covers the size, the beginning and the end of a file (`video_io.digest_file`). The end of a
shard contains the positions of its records. Remote files and rendered worlds have no digests.
"""

import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from invnext_jax.data import video_io
from invnext_jax.data.manifest import Manifest

_THREADS = 16  # hides the latency of network file systems
_GROUP = 16 * _THREADS  # number of files that are read before the next ones are started
_SOURCE_ROWS = 16  # number of sampled rows of each source
_MAX_ROWS = 512  # maximum number of sampled rows


def list_files(manifest: Manifest) -> list[str]:
    """Returns the local videos and shards of a manifest in the order of its rows, each once."""
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
    """Returns the digests of local files that are spread over each source of a manifest.

    The choice depends only on the number of rows of each source and their order.

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
    """Returns rows at equal distances in each source, among them its first and last row."""
    numbers: dict[str, int] = {}
    source_b = np.fromiter((numbers.setdefault(s, len(numbers)) for s in sources), np.int64)
    order_b = np.argsort(source_b, kind="stable")
    count = max(1, min(_SOURCE_ROWS, _MAX_ROWS // len(numbers)))
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
        is_file = stat.S_ISREG(os.stat(path).st_mode)  # opening a named pipe would block
        return video_io.digest_file(path) if is_file else ""
    except (OSError, ValueError):  # ValueError: the path contains a null character
        return ""
