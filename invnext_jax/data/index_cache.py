"""Caches the frame indexes of video files, so that a file is scanned once instead of for each clip.

Each process caches the indexes of the files that it used most recently. The indexes of files that
are slow to scan are also stored next to the manifest, in `<manifest>.frames.jsonl`, one JSON line
per file. An index is used only while the file has the same size and modification time.
"""

import base64
import binascii
import collections
import contextlib
import io
import itertools
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

from invnext_jax.data import decode, video_io
from invnext_jax.data.frame_index import PacketIndex
from invnext_jax.workers.read_clock import reading

MAX_FRAMES = 500_000  # total number of frames of the cached indexes; about 20 MiB
MIN_STORED_FRAMES = 2000  # the index of a shorter file is stored only if it was built by decoding
MAX_JSON_BYTES = 2**26  # decompressed size of a stored index; enough for 10 million frames
MAX_TICKS = 2**62  # maximum time stamp, and difference of time stamps
SUFFIX = ".frames.jsonl"
Version = tuple[int, int]  # size in bytes and modification time in nanoseconds


class IndexCache:
    """Least recently used cache of the indexes of local files, for the threads of one process.

    Args:
        max_frames: Maximum total number of frames of the cached indexes. The most recent index is
            always kept.
    """

    def __init__(self, max_frames: int = MAX_FRAMES):
        self._max_frames, self._frames = max_frames, 0
        self._indexes: collections.OrderedDict[tuple[str, Version], PacketIndex] = (
            collections.OrderedDict()
        )
        self._stored: dict[str, str] = {}
        self._loaded: set[str] = set()
        self._lock = threading.RLock()

    def load(self, files: Sequence[str]) -> None:
        """Reads stored indexes, each file once. Files that cannot be read are ignored."""
        with self._lock:
            for file in files:
                if file not in self._loaded:
                    self._loaded.add(file)
                    self._stored |= _read_lines(file)

    def get(self, path: str, version: Version) -> PacketIndex | None:
        """Returns the index of this version of a file, or None."""
        key = path, version
        with self._lock:
            if key in self._indexes:
                self._indexes.move_to_end(key)
                return self._indexes[key]
            text = self._stored.get(path)
        index = decode_index(text, version) if text else None
        if index is not None:
            self.put(path, version, index)
        return index

    def put(self, path: str, version: Version, index: PacketIndex) -> None:
        """Adds an index and removes the least recently used ones."""
        with self._lock:
            if (path, version) in self._indexes:
                return
            self._indexes[path, version] = index
            self._frames += len(index.times)
            while self._frames > self._max_frames and len(self._indexes) > 1:
                _, removed = self._indexes.popitem(last=False)
                self._frames -= len(removed.times)


CACHE = IndexCache()


@contextlib.contextmanager
def open_video(
    path: str,
    record: int | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[decode.VideoReader]:
    """Opens a video of a manifest with its cached index; see `decode.open_video`.

    Args:
        path: Local or remote file, or a shard.
        record: Position of the video in the shard; None for a file.
        start: Start in seconds after the first frame. None is the beginning.
        end: Exclusive end in seconds after the first frame. None is the end.

    Yields:
        The reader.

    Raises:
        BadVideo: The video cannot be opened or decoded.
    """
    with video_io.open_source(path, record) as source:
        version = index = None
        if isinstance(source, io.FileIO):  # a local file
            version = file_version(os.fstat(source.fileno()))
            index = CACHE.get(path, version)
        with decode.open_video(source, start=start, end=end, index=index) as video:
            if version is not None:
                CACHE.put(path, version, video.index)
            yield video


def file_version(status: os.stat_result) -> Version:
    """Returns the version of a file from its status."""
    return status.st_size, status.st_mtime_ns


def is_slow(index: PacketIndex) -> bool:
    """Returns whether building the index is slow enough that it should be stored."""
    return index.is_decoded or len(index.times) >= MIN_STORED_FRAMES


def encode_index(index: PacketIndex, version: Version) -> str:
    """Encodes an index as compressed JSON in base64."""
    times = index.times if index.times[0] is None else _differences(index.times)
    keys = _differences(index.key_times)
    data = json.dumps([*version, times, keys, index.reorder_delay, index.is_decoded])
    return base64.b64encode(zlib.compress(data.encode())).decode()


def _differences(values: Sequence[int]) -> list[int]:
    """Returns the first value, then the difference of each other value to its predecessor."""
    return [b - a for a, b in itertools.pairwise((0, *values))]


def decode_index(text: str, version: Version) -> PacketIndex | None:
    """Decodes an index of `encode_index`; None if the file has changed or the text is damaged."""
    try:
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(base64.b64decode(text, validate=True), MAX_JSON_BYTES)
        if not decompressor.eof:
            return None
        size, changed, times, keys, delay, is_decoded = json.loads(data)
        if (size, changed) != version or not times:
            return None
        has_times = times[0] is not None
        for number in (*(times if has_times else ()), *keys, delay):
            if type(number) is not int or abs(number) > MAX_TICKS:
                return None
        if not has_times and (any(time is not None for time in times) or keys):
            return None
        times = tuple(itertools.accumulate(times)) if has_times else tuple(times)
        return PacketIndex(times, tuple(itertools.accumulate(keys)), delay, bool(is_decoded))
    except (binascii.Error, zlib.error, ValueError, TypeError, IndexError, RecursionError):
        return None


def format_lines(indexes: Iterable[tuple[str, str]]) -> str:
    """Formats (path, encoded index) pairs as the text of a file of stored indexes.

    Args:
        indexes: Paths, absolute or relative to the folder of the file, and encoded indexes.
    """
    return "".join(json.dumps({"path": path, "index": text}) + "\n" for path, text in indexes)


def stored_file(manifest: str) -> str:
    """Returns the name of the file that stores the indexes of a manifest."""
    return manifest.removesuffix(".csv") + SUFFIX


def _read_lines(file: str) -> dict[str, str]:
    """Returns a dict from absolute path to encoded index, read from a file of stored indexes."""
    folder, found = os.path.dirname(os.path.abspath(file)), {}
    try:
        with reading(), open(file, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                found[os.path.join(folder, row["path"])] = row["index"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logging.warning("%s is not used, because it cannot be read: %s", file, error)
    return found
