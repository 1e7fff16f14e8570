"""Finds the first of many entries that overlaps with a range of time."""

import math
from collections.abc import Iterable, Iterator

from invnext_jax.video_lists.video_list import VideoEntry


def time_range(entry: VideoEntry) -> tuple[float, float]:
    """Returns the start and the end of an entry; the end of a whole video is infinite."""
    return entry.start or 0.0, math.inf if entry.end is None else entry.end


class EarliestOverlap:
    """Finds the first added entry that overlaps with another one, in O(log(n)^2).

    A segment tree over the times at which entries start and end. A node represents a range of time,
    and stores the first entry that covers it, and the first one with another path. It also stores
    the same for the entries that overlap with it.
    """

    def __init__(self, entries: Iterable[VideoEntry]):
        """Creates an empty tree.

        Args:
          entries: All entries that will be added or searched for.
        """
        times = sorted({time for entry in entries for time in time_range(entry)})
        self._places = {time: place for place, time in enumerate(times)}
        self._leaves, self._added = 1 << len(times).bit_length(), 0
        # Entries by node. The children of node n are the nodes 2 n and 2 n + 1.
        self._covering: dict[int, list[tuple[int, VideoEntry]]] = {}
        self._overlapping: dict[int, list[tuple[int, VideoEntry]]] = {}

    def add(self, entry: VideoEntry) -> None:
        """Adds an entry."""
        numbered = self._added, entry
        self._added += 1
        for node in self._nodes(entry):
            _keep(self._covering.setdefault(node, []), numbered)
            _keep(self._overlapping.setdefault(node, []), numbered)
            for above in _ancestors(node):
                _keep(self._overlapping.setdefault(above, []), numbered)

    def find(self, entry: VideoEntry, *, other_path: bool = False) -> VideoEntry | None:
        """Returns the first added entry that overlaps with an entry; None if there is none.

        Args:
          entry: The entry.
          other_path: Whether to ignore entries with the path of `entry`.
        """
        found = []
        for node in self._nodes(entry):
            found += self._overlapping.get(node, ())
            for above in _ancestors(node):
                found += self._covering.get(above, ())
        allowed = (pair for pair in found if not (other_path and pair[1].path == entry.path))
        return min(allowed, key=lambda pair: pair[0], default=(0, None))[1]

    def _nodes(self, entry: VideoEntry) -> Iterator[int]:
        """Yields the nodes whose ranges together form the range of an entry."""
        first, last = (self._places[time] + self._leaves for time in time_range(entry))
        while first < last:
            if first % 2:
                yield first
                first += 1
            if last % 2:
                last -= 1
                yield last
            first, last = first // 2, last // 2


def _ancestors(node: int) -> Iterator[int]:
    while node := node // 2:
        yield node


def _keep(kept: list[tuple[int, VideoEntry]], numbered: tuple[int, VideoEntry]) -> None:
    """Appends an entry if it is the first one, or the first one with another path."""
    if not kept or (len(kept) == 1 and kept[0][1].path != numbered[1].path):
        kept.append(numbered)
