"""Digests of the videos from which a shard was made, to detect files that were replaced since.

A digest covers the size, the beginning and the end of a local file (`video_io.digest_file`).
Remote files, files that cannot be read and shards of earlier versions have no digests and are not
compared.
"""

from collections.abc import Iterable, Mapping

from etils import epath

from invnext_jax.checkpointing import video_digests
from invnext_jax.data import video_io
from invnext_jax.data.manifest import Manifest
from invnext_jax.dataset_prep.shard_files import read_json
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress import ProgressMeter

_METER_FILES = 4096  # minimum number of files for which progress is shown


def hash_sources(
    manifest: Manifest, rows: Iterable[int], seconds: float, progress: bool = False
) -> dict[int, str]:
    """Returns the digest of the source video of each row; "" if it is remote or unreadable.

    Args:
      manifest: The manifest.
      rows: Numbers of rows of the manifest.
      seconds: Time limit, see `video_digests.digest_files`.
      progress: Whether to show progress if there are many files.
    """
    by_row = {row: manifest.paths[row] for row in rows}
    paths = [path for path in dict.fromkeys(by_row.values()) if not video_io.is_remote(path)]
    digests: dict[str, str] = {}
    quiet = not progress or len(paths) < _METER_FILES
    with ProgressMeter(len(paths), "file", quiet=quiet) as meter:
        for path, digest in zip(paths, video_digests.digest_files(paths, seconds), strict=True):
            digests[path] = digest
            meter.update(len(digests), "hashed")
    return {row: digests.get(path, "") for row, path in by_row.items()}


def read_digests(path: epath.Path, rows: range) -> dict[int, str]:
    """Returns the digests that were stored for rows of a shard; {} if there is no valid file."""
    try:
        stored = [(row, digest) for row, digest in read_json(path)]
    except (OSError, ValueError, TypeError, UserError):
        return {}
    are_valid = all(type(row) is int and isinstance(digest, str) for row, digest in stored)
    return {row: digest for row, digest in stored if row in rows} if are_valid else {}


def find_changed(
    manifest: Manifest, digests: Mapping[int, str], seconds: float, progress: bool = False
) -> list[str]:
    """Returns the paths of the videos whose digests differ from the given ones, by row.

    Args:
      manifest: The manifest.
      digests: Digest of the source video of each row.
      seconds: Time limit, see `video_digests.digest_files`.
      progress: Whether to show progress if there are many files.
    """
    current = hash_sources(manifest, sorted(digests), seconds, progress)
    changed = (row for row, digest in current.items() if digest not in ("", digests[row]))
    return list(dict.fromkeys(manifest.paths[row] for row in changed))
