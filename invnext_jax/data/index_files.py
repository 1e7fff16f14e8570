"""Stored frame indexes, so that videos that are slow to scan are not scanned by each process.

They are stored next to the manifest in `<manifest>.frames.jsonl`, with one JSON line per video. An
index is used only if the size and the modification time of the video have not changed.
"""

import base64
import binascii
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Sequence

from absl import logging

from invnext_jax import regular_file
from invnext_jax.video.frame_index import PacketIndex
from invnext_jax.workers.time_limits import reading

MIN_STORED_FRAMES = 2000  # the index of a shorter file is stored only if it was built by decoding
MAX_BYTES = 2**30  # maximum size of a file of stored indexes, which each worker keeps in memory
MAX_LINE_BYTES = 2**24  # maximum size of a line of this file
MAX_JSON_BYTES = 2**24  # decompressed size of a stored index; enough for a day at 30 fps
MAX_TICKS = 2**62  # maximum time stamp, and difference of time stamps
SUFFIX = ".frames.jsonl"
Version = tuple[int, int]  # size in bytes and modification time in nanoseconds


def is_slow(index: PacketIndex) -> bool:
    """Returns whether building the index is slow enough that it should be stored."""
    return index.is_decoded or len(index.times) >= MIN_STORED_FRAMES


def encode_index(index: PacketIndex, version: Version) -> str:
    """Encodes an index as compressed JSON in base64; "" if it is too long to be stored."""
    times = index.times if index.times[0] is None else _differences(index.times)
    keys = _differences(index.key_times)
    data = json.dumps([*version, times, keys, index.reorder_delay, index.is_decoded]).encode()
    text = base64.b64encode(zlib.compress(data)).decode()
    return text if max(len(data), 2 * len(text)) < min(MAX_JSON_BYTES, MAX_LINE_BYTES) else ""


def _differences(values: Sequence[int]) -> list[int]:
    """Returns the first value, followed by the difference of each value from its predecessor."""
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
        if type(times) is not list or type(keys) is not list:
            return None
        has_times = times[0] is not None
        for number in (*(times if has_times else ()), *keys, delay):
            if type(number) is not int or abs(number) > MAX_TICKS:
                return None
        if not has_times and (any(time is not None for time in times) or keys):
            return None
        # Seeks need times in ascending order.
        if keys and any(step < 1 for step in itertools.chain(times[1:], keys[1:])):
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


def read_stored(file: str) -> dict[str, str]:
    """Returns a dict from absolute path to encoded index, read from a file of stored indexes."""
    folder, found = os.path.dirname(os.path.abspath(file)), {}
    try:
        with reading(), regular_file.open_binary(file, MAX_BYTES) as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    raise ValueError(f"a line has {MAX_LINE_BYTES} bytes or more")
                row = json.loads(line)
                if not isinstance(row["index"], str):  # nested lists would fill the memory
                    raise TypeError(f"the index of {row['path']!r:.80} is not text")
                found[os.path.join(folder, row["path"])] = row["index"]
    except FileNotFoundError:
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        logging.warning("the frame indexes in %s are not used: %s", file, reason)
    return found
