"""Finds the same videos in two manifests, or twice in one, by their names and contents.

Shape key: n rows, 2 = (start, end) in seconds.
"""

import bisect
import collections
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import shards, video_io
from invnext_jax.data.manifest import Manifest
from invnext_jax.synthetic_world import urls

COPIES_SECONDS = 60.0  # time limit for the comparison of contents when a run starts


def find_copies(
    train: Manifest,
    val: Manifest,
    train_rows: Sequence[int] | np.ndarray | None = None,
    val_rows: Sequence[int] | np.ndarray | None = None,
    seconds: float | None = None,
) -> dict[int, int]:
    """Finds held-out videos that are also training videos.

    Copies are recognized by name, by the name of the file from which a record was made, or, for
    local files and records of shards, by their contents. Clips from the same video are copies if
    they overlap in time. If the times of a record in its file are unknown, they may overlap.

    Args:
      train: The manifest with the training videos.
      val: The manifest with the held-out videos. It may be the same.
      train_rows: Rows of the training videos. None for all.
      val_rows: Rows of the held-out videos. None for all.
      seconds: Time limit for the comparison of contents. Files that have not been read by then are
          compared by name only, so that storage that hangs does not block the caller.

    Returns:
      A dict from rows of `val` to rows of training videos with the same name or contents.
    """
    train_rows = range(len(train)) if train_rows is None else train_rows
    val_rows = range(len(val)) if val_rows is None else val_rows
    copies = _match_names(_own_names, train, val, train_rows, val_rows)
    if train.original.any() or val.original.any():
        rest = [row for row in val_rows if row not in copies]
        copies |= _match_names(name_originals, train, val, train_rows, rest)
    rest = [int(row) for row in val_rows if row not in copies]
    if seconds is None:
        return {**copies, **_match_contents(train, val, train_rows, rest, math.inf)}
    arguments = train, val, train_rows, rest, time.monotonic() + seconds
    # A daemon thread does not keep the process alive if a read never returns.
    thread = threading.Thread(
        target=lambda: copies.update(_match_contents(*arguments)), daemon=True
    )
    thread.start()
    thread.join(2 * seconds)  # the last read may begin just before the deadline
    return dict(copies)


def find_repeats(part: Manifest) -> dict[int, int]:
    """Finds rows with the video and the times of an earlier row.

    Videos are the same if their names or, for local files, their contents are equal. Records of
    shards are compared by name and by the name of the file from which they were made.

    Returns:
      A dict from rows to earlier rows with the same video.
    """
    keys, times_n2 = identify_rows(part)
    found = _match_earlier(enumerate(keys), list(map(tuple, times_n2.tolist())))
    times = list(map(tuple, _own_times(part).tolist()))
    files = [r for r in range(len(part)) if part.record[r] == manifest_lib.NO_RECORD]
    sizes = _sizes(part, files, math.inf)
    counts = collections.Counter(sizes.values())
    digests = _digests(part, [row for row, size in sizes.items() if counts[size] > 1], math.inf)
    return _match_earlier(digests.items(), times) | found


def _match_earlier(keys: Iterable[tuple[int, Any]], times: Sequence[Any]) -> dict[int, int]:
    """Maps rows to the first row with the same key and times."""
    first, found = {}, {}
    for row, key in keys:
        earlier = first.setdefault((key, times[row]), row)
        if earlier != row:
            found[row] = earlier
    return found


def _match_contents(
    train: Manifest,
    val: Manifest,
    train_rows: Sequence[int] | np.ndarray,
    val_rows: Sequence[int] | np.ndarray,
    deadline: float,
) -> dict[int, int]:
    """Compares the contents of files with equal sizes and of records; stops at the deadline."""
    val_sizes = _sizes(val, val_rows, deadline)
    wanted = set(val_sizes.values())
    if not wanted:
        return {}
    train_sizes = _sizes(train, map(int, train_rows), deadline)
    shared = wanted & set(train_sizes.values())
    val_digests, train_digests = (
        _digests(part, [row for row, size in found.items() if size in shared], deadline)
        for part, found in ((val, val_sizes), (train, train_sizes))
    )
    return _match(_own_times(train), _own_times(val), train_digests, val_digests)


def name_rows(part: Manifest) -> Iterator[tuple[Any, int]]:
    """Yields a key for each row, which is equal for other spellings of the same name.

    The key depends only on the text of the manifest. For `world:` URLs, it omits the number of
    clips.
    """
    specs = {}
    for path, record in zip(part.paths, part.record.tolist(), strict=True):
        if video_io.is_world(path):
            world, _, clip = path.partition("#")
            if world not in specs:
                specs[world] = urls.parse(world).spec
            yield specs[world], int(clip)
        else:
            yield path if video_io.is_remote(path) else os.path.normpath(path), record


def name_originals(part: Manifest) -> tuple[list[Any], np.ndarray]:
    """Returns keys of the files from which records were made, equal to those of the files.

    Returns:
      The key of each row, and its start and end in the file, [rows, 2]. The end may be inf, and
      unknown times are -inf and inf.
    """
    keys = [
        original or _hash_key(key)
        for original, key in zip(part.original.tolist(), name_rows(part), strict=True)
    ]
    first_n, last_n = part.original_times.T
    unknown_n = np.isinf(first_n) & (part.original != 0)
    offset_n = np.where(np.isfinite(first_n), first_n, 0.0)
    start_n, end_n = (_own_times(part) + offset_n[:, None]).T
    end_n = np.where(np.isnan(part.end) & ~np.isnan(last_n), last_n, end_n)
    start_n, end_n = np.where(unknown_n, -np.inf, start_n), np.where(unknown_n, np.inf, end_n)
    return keys, np.stack([start_n, end_n], axis=1)


def identify_rows(part: Manifest) -> tuple[list[Any], np.ndarray]:
    """Returns a key and times for each row, which are equal for repeated rows.

    They are those of `name_originals`. A record whose times in its file are unknown has the key of
    `name_rows`, and its own times.
    """
    keys, times_n2 = name_originals(part)
    unknown_n = np.isneginf(times_n2[:, 0])
    if unknown_n.any():
        names = name_rows(part)
        keys = [
            name if is_unknown else key
            for name, key, is_unknown in zip(names, keys, unknown_n, strict=True)
        ]
        times_n2 = np.where(unknown_n[:, None], _own_times(part), times_n2)
    return keys, times_n2


def _own_names(part: Manifest) -> tuple[list[Any], np.ndarray]:
    return list(name_rows(part)), _own_times(part)


def _own_times(part: Manifest) -> np.ndarray:
    """Returns the start and end of each row, [rows, 2]; the end may be inf."""
    end_n = np.where(np.isnan(part.end), np.inf, part.end)
    return np.stack([np.where(np.isnan(part.start), 0.0, part.start), end_n], axis=1)


def _hash_key(key: tuple[Any, int]) -> Any:
    """Returns the hash of a key of `name_rows` as a name of an original; worlds have none."""
    path, record = key
    if not isinstance(path, str):
        return key
    return shards.hash_name(path if record == manifest_lib.NO_RECORD else f"{path}#{record}")


def _match_names(
    name: Callable[[Manifest], tuple[list[Any], np.ndarray]],
    train: Manifest,
    val: Manifest,
    train_rows: Iterable[int],
    val_rows: Iterable[int],
) -> dict[int, int]:
    """Matches rows by the keys and times that `name` returns; see `_match`."""
    train_keys, train_times_n2 = name(train)
    val_keys, val_times_n2 = (train_keys, train_times_n2) if val is train else name(val)
    return _match(
        train_times_n2,
        val_times_n2,
        {int(row): train_keys[row] for row in train_rows},
        {int(row): val_keys[row] for row in val_rows},
    )


def _match(
    train_times_n2: np.ndarray,
    val_times_n2: np.ndarray,
    train_keys: dict[int, Any],
    val_keys: dict[int, Any],
) -> dict[int, int]:
    """Maps rows of `val` to rows of `train` that have the same key and overlap in time."""
    wanted, by_key = set(val_keys.values()), collections.defaultdict(list)
    for row, key in train_keys.items():
        if key in wanted:
            by_key[key].append(row)
    indexes = {key: _TimeIndex(train_times_n2, rows) for key, rows in by_key.items()}
    found = {}
    for row, key in val_keys.items():
        if key in indexes and (other := indexes[key].find(*val_times_n2[row].tolist())) is not None:
            found[row] = other
    return found


class _TimeIndex:
    """Finds clips of a video by time.

    Args:
      times_n2: The start and end of all rows.
      rows: Rows of the clips.
    """

    def __init__(self, times_n2: np.ndarray, rows: Iterable[int]):
        self._starts, self._ends, self._rows = [], [], []
        for (start, end), row in sorted((times_n2[row].tolist(), row) for row in rows):
            # Any clip that overlaps one of the others also overlaps an earlier one.
            if start < end and (not self._ends or end > self._ends[-1]):
                self._starts.append(start)
                self._ends.append(end)
                self._rows.append(row)

    def find(self, start: float, end: float) -> int | None:
        """Returns the first row that overlaps a clip in time."""
        place = bisect.bisect_right(self._ends, start)  # starts and ends are ascending
        is_found = place < len(self._rows) and max(start, self._starts[place]) < end
        return self._rows[place] if is_found else None


def _sizes(part: Manifest, rows: Iterable[int], deadline: float) -> dict[int, Any]:
    """Returns a dict from row to the size of the local file, or "record" for records of shards."""
    sizes, known = {}, {}
    for row in rows:
        path = part.paths[row]
        if part.record[row] != manifest_lib.NO_RECORD:
            sizes[row] = "record"
        elif not video_io.is_remote(path) and not video_io.is_world(path):
            if path not in known:
                if time.monotonic() > deadline:
                    break
                known[path] = _size(path)
            if known[path] is not None:
                sizes[row] = known[path]
    return sizes


def _size(path: str) -> int | None:
    """Returns the size of a file; None for files that cannot be read or are empty."""
    try:
        return os.stat(path).st_size or None
    except (OSError, ValueError):  # ValueError: the path contains a null character
        return None


def _digests(part: Manifest, rows: Iterable[int], deadline: float) -> dict[int, str]:
    """Returns a dict from row to the hash of the video's contents, for readable videos."""
    digests, known, digest_record = {}, {}, None
    with contextlib.ExitStack() as stack:
        for row in rows:
            if time.monotonic() > deadline:
                break
            video = part[row]
            if video.record is not None:
                digest_record = digest_record or stack.enter_context(shards.open_digester())
                if digest := digest_record(video.path, video.record):
                    digests[row] = digest
                continue
            # Unreadable videos are counted when the videos are decoded.
            with contextlib.suppress(OSError):
                if video.path not in known:
                    known[video.path] = video_io.digest_file(video.path)
                digests[row] = known[video.path]
    return digests
