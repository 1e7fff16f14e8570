"""Digests of the files behind a manifest, which show that videos were replaced in place.

A digest covers the size, the beginning and the end of a file (`video_io.digest_file`). The end of a
shard contains the positions of its records. Remote files and rendered worlds have no digests.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent import futures

from invnext_jax.data import video_io
from invnext_jax.data.manifest import Manifest
from invnext_jax.synthetic_world import urls

_THREADS = 16  # hides the latency of network file systems
_CHUNK = 1024  # number of files that are waiting at a time


def list_files(manifest: Manifest) -> list[str]:
    """Returns the local videos and shards of a manifest in the order of its rows, each once."""
    return [path for path in dict.fromkeys(manifest.paths) if is_local(path)]


def is_local(path: str) -> bool:
    """Returns whether the path of a row is a local file."""
    return not video_io.is_remote(path) and not urls.is_world(path)


def digest_files(paths: Sequence[str]) -> Iterator[str]:
    """Yields the digest of each local file; "" if it cannot be read."""
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(_digest, paths[start : start + _CHUNK])


def _digest(path: str | os.PathLike) -> str:
    try:
        return video_io.digest_file(path)
    except (OSError, ValueError):  # a path with a null character is a ValueError
        return ""
