"""Removal of copies: equal to a comparison of all pairs, and fast for many segments of a file."""

import math
import random
import time
from types import SimpleNamespace

import pytest

from invnext_jax.dataset_prep import duplicates
from invnext_jax.dataset_prep.duplicates import ExcludedVideos
from invnext_jax.video_lists.video_list import VideoEntry

TIMES = [None, 0.0, 1.0, 1.5, 2.0, 3.0, 5.0]


def overlap(first, second):
    ranges = [(e.start or 0.0, math.inf if e.end is None else e.end) for e in (first, second)]
    return max(start for start, _ in ranges) < min(end for _, end in ranges)


def remove_by_pairs(clean):
    """Compares each entry with all earlier ones."""
    kept, removed = [], []
    for entry, probe in clean:
        copies = (
            other
            for other, own in kept
            if own.digest == probe.digest and other.path != entry.path and overlap(entry, other)
        )
        if original := next(copies, None):
            removed.append((entry.path, f"same content as an earlier video: {original.path}"))
        else:
            kept.append((entry, probe))
    return kept, removed


def random_entries(rng, count):
    names = "abcd"
    return [
        VideoEntry(rng.choice(names), "x", rng.choice(TIMES), rng.choice(TIMES))
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(100))
def test_copies_are_those_of_a_comparison_of_all_pairs(seed):
    rng = random.Random(seed)
    probes = [SimpleNamespace(digest=digest) for digest in "12"]
    clean = [(entry, rng.choice(probes)) for entry in random_entries(rng, 30)]
    assert duplicates.remove_duplicates(clean) == remove_by_pairs(clean)


@pytest.mark.parametrize("seed", range(50))
def test_excluded_videos_are_those_of_a_comparison_of_all_pairs(seed):
    rng = random.Random(seed)
    listed, probe = random_entries(rng, 3), SimpleNamespace(digest="1")
    clean = [(entry, probe) for entry in random_entries(rng, 20)]
    kept, removed = duplicates.remove_excluded(clean, ExcludedVideos({"1": listed}, 3, 0))
    expected = [next((x for x in listed if overlap(entry, x)), None) for entry, _ in clean]
    assert kept == [pair for pair, other in zip(clean, expected, strict=True) if other is None]
    reasons = [f"same content as a video of --exclude: {x.path}" for x in expected if x]
    assert [reason for _, reason in removed] == reasons


def test_many_segments_of_a_file_and_its_copy_are_compared_quickly():
    count, probe = 20_000, SimpleNamespace(digest="1")
    clean = [(VideoEntry("ab"[i % 2], "x", float(i), i + 1.0), probe) for i in range(count)]
    start = time.monotonic()
    kept, removed = duplicates.remove_duplicates(clean)
    assert len(kept) == count and not removed
    assert time.monotonic() - start < 30  # 2e8 comparisons of pairs take minutes
