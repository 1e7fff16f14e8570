"""Perceptual hashes of videos, to find copies that were re-encoded, resized or trimmed.

The hash "pHash" of five evenly spaced frames is computed. Each frame is averaged to 32 x 32 gray
values. Each of the 64 bits is set if one of the 8 x 8 lowest coefficients of the discrete cosine
transform is above their median. Frames without contrast have no hash. Two videos are similar if at
least three of the five frame positions have a hash in both videos and these hashes differ in fewer
than 8 of 64 bits on average; unrelated frames differ in about 32. To avoid comparing all pairs,
only videos that share a 16-bit word of a hash are compared. This finds all pairs with fewer than 4
differing bits, and 19 of 20 pairs with slightly fewer than 8.
"""

import collections
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import fft

from invnext_jax import file_lock, regular_file
from invnext_jax.data import decode
from invnext_jax.errors import UserError
from invnext_jax.video_lists.video_list import VideoEntry

FRAMES = 5
MAX_CACHE_BYTES = 2**33  # maximum size of a cache; a result has about 200 bytes
_MAX_LINE_BYTES = 2**16
BITS = 64
MAX_BITS = 8  # videos that differ in fewer bits per frame are similar
MIN_FRAMES = 3
SIDE = 32
MIN_CONTRAST = 4.0  # standard deviation of the gray values, which are at most 255
Hashes = tuple[int | None, ...]


class SimilarVideo(NamedTuple):
    """A video that is similar to an earlier one.

    Attributes:
      video: Number of the video.
      other: Number of the earlier video.
      bits: Average number of the 64 bits in which their frames differ.
    """

    video: int
    other: int
    bits: float


def hash_video(path: str, start: float | None, end: float | None) -> Hashes | None:
    """Hashes evenly spaced frames of a video; returns None if the video cannot be decoded."""

    def pick(count: int) -> list[int]:
        return [int((i + 0.5) * count / FRAMES) for i in range(FRAMES)]

    try:
        frames_thwc = decode.read_frames(path, pick, short_side=2 * SIDE, start=start, end=end)
    except decode.BadVideo:
        return None
    return tuple(map(hash_frame, frames_thwc))


class VideoHasher:
    """Calls `hash_video` in worker processes."""

    def __call__(self, path: str, start: float | None, end: float | None) -> Hashes | None:
        """Returns the hashes of a video."""
        return hash_video(path, start, end)

    def is_valid(self, result: Any, *task: Any) -> bool:
        """Returns whether a worker's result has the structure that `hash_video` returns."""
        del task
        return result is None or (isinstance(result, tuple) and _are_hashes(result))


def hash_frame(image_hwc: np.ndarray) -> int | None:
    """Returns the 64-bit hash of an RGB image, or None if the image has no contrast."""
    gray_hw = image_hwc.astype(np.float64) @ (0.299, 0.587, 0.114)  # luma of BT.601
    gray_hw = _average(_average(gray_hw).T).T
    if gray_hw.std() < MIN_CONTRAST:
        return None
    low = fft.dctn(gray_hw)[:8, :8].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _average(image_hw: np.ndarray) -> np.ndarray:
    """Reduces the rows of an image to 32 by averaging."""
    rows = image_hw.shape[0]
    if rows < SIDE:
        return image_hw[np.arange(SIDE) * rows // SIDE]
    edges = np.arange(SIDE + 1) * rows // SIDE
    return np.add.reduceat(image_hw, edges[:-1], axis=0) / np.diff(edges)[:, None]


def find_similar(hashes: Sequence[Hashes | None]) -> Iterator[SimilarVideo]:
    """Finds the videos that are similar to an earlier one.

    Args:
      hashes: Hashes of the frames of each video. A video whose hashes are None is not compared.

    Yields:
      Each similar video once, paired with the first earlier video that it is similar to.
    """
    words, bits, has_hash = _arrays(hashes)
    buckets = [collections.defaultdict(list) for _ in range(words.shape[1])]
    for video in np.flatnonzero(has_hash.sum(axis=1) >= MIN_FRAMES):
        own = [
            bucket[word]
            for place, (bucket, word) in enumerate(zip(buckets, words[video].tolist(), strict=True))
            if has_hash[video, place // 4]
        ]
        others = np.unique(np.fromiter((other for part in own for other in part), np.int64))
        both = has_hash[others] & has_hash[video]
        counts = both.sum(axis=1)
        changed = (np.bitwise_count(bits[others] ^ bits[video]) * both).sum(axis=1)
        similar = (counts >= MIN_FRAMES) & (changed < MAX_BITS * counts)
        if similar.any():
            first = int(np.argmax(similar))
            yield SimilarVideo(int(video), int(others[first]), changed[first] / counts[first])
        for part in own:
            part.append(video)


def _arrays(hashes: Sequence[Hashes | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the 16-bit words of the hashes, the hashes, and whether they exist.

    The shapes are [videos, 4 * FRAMES], [videos, FRAMES] and [videos, FRAMES].
    """
    bits = np.zeros((len(hashes), FRAMES), np.uint64)
    has_hash = np.zeros((len(hashes), FRAMES), bool)
    for video, values in enumerate(hashes):
        for frame, value in enumerate(values or ()):
            if value is not None:
                bits[video, frame], has_hash[video, frame] = value, True
    shifts = np.arange(0, BITS, 16, dtype=np.uint64)
    words = (bits[:, :, None] >> shifts) & np.uint64(0xFFFF)
    return words.reshape(len(hashes), -1), bits, has_hash


def _are_hashes(values: Sequence) -> bool:
    return len(values) == FRAMES and all(
        value is None or (type(value) is int and 0 <= value < 2**BITS) for value in values
    )


class HashCache:
    """Cache of hashes in a file of JSON lines, so that an interrupted run can be resumed.

    A result's key consists of the file's digest, the start and the end.
    """

    def __init__(self, path: Path):
        self._path, self._known = path, {}
        if os.path.exists(path):
            self._read()

    def _read(self) -> None:
        try:
            with regular_file.open_binary(self._path, MAX_CACHE_BYTES) as file:
                while line := file.readline(_MAX_LINE_BYTES):
                    self._add_line(line)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read ({error.strerror}): delete it to compute all hashes "
                "again"
            ) from error

    def _add_line(self, line: bytes) -> None:
        try:
            *key, values = json.loads(line)
            if _are_hashes(values):
                self._known[tuple(key)] = tuple(values)
        except (ValueError, TypeError, RecursionError):  # the run was killed during a write
            pass

    def get(self, digest: str, entry: VideoEntry) -> Hashes | None:
        """Returns the hashes of a segment of a file, or None if they are not cached."""
        return self._known.get((digest, entry.start, entry.end))

    def put(self, digest: str, entry: VideoEntry, hashes: Hashes) -> None:
        """Stores the hashes of a segment of a file."""
        self._known[digest, entry.start, entry.end] = hashes
        row = [digest, entry.start, entry.end, hashes]
        # Starts with a line break, because the last line may be incomplete.
        with file_lock.open_file(self._path, "ab") as file:
            file.write(b"\n" + json.dumps(row).encode() + b"\n")
