"""Finds duplicate videos within a list, and copies of the videos in other lists."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from invnext_jax.data.video_io import digest_file
from invnext_jax.dataset_prep import frame_hashes
from invnext_jax.dataset_prep.earliest_overlap import EarliestOverlap
from invnext_jax.dataset_prep.frame_hashes import HashCache, Hashes
from invnext_jax.dataset_prep.probing import VideoProbe
from invnext_jax.dataset_prep.worker_map import map_in_workers
from invnext_jax.errors import UserError
from invnext_jax.video_lists import lists
from invnext_jax.video_lists.video_list import ListOptions, VideoEntry

Entries = Sequence[tuple[VideoEntry, str]]  # each entry with the digest of its file
Clean = list[tuple[VideoEntry, VideoProbe]]
Problems = list[tuple[str, str]]  # path and reason


@dataclasses.dataclass(frozen=True)
class ExcludedVideos:
    """Videos that must not be in a manifest.

    Attributes:
      by_digest: Entries for each file digest.
      listed: Number of listed videos.
      unreadable: Number of listed videos whose file is missing or cannot be read.
    """

    by_digest: dict[str, list[VideoEntry]]
    listed: int
    unreadable: int

    @property
    def entries(self) -> Entries:
        """The readable entries, each with the digest of its file."""
        return [(entry, digest) for digest, own in self.by_digest.items() for entry in own]


def read_excluded(names: Sequence[str]) -> ExcludedVideos:
    """Reads lists of videos to exclude and hashes their files.

    Raises:
      UserError: A list cannot be read, or none of its videos can.
    """
    by_digest, digests, listed, unreadable = {}, {}, 0, 0
    for name in names:
        options = ListOptions(source="excluded", split="all", classes="alphabetical")
        entries, bad = lists.read_list(name, options).entries, 0
        for entry in entries:
            try:
                if entry.path not in digests:
                    digests[entry.path] = digest_file(entry.path)
            except OSError:
                bad += 1
                continue
            by_digest.setdefault(digests[entry.path], []).append(entry)
        if bad == len(entries):
            raise UserError(
                f"none of the {bad} videos of --exclude={name} can be read, for example "
                f"{entries[0].path}: index the list and specify its manifest"
            )
        listed, unreadable = listed + len(entries), unreadable + bad
    return ExcludedVideos(by_digest, listed, unreadable)


def remove_excluded(clean: Clean, excluded: ExcludedVideos) -> tuple[Clean, Problems]:
    """Removes copies of excluded videos. Returns the kept videos, and a reason for each other.

    A segment of a video is removed only if it overlaps with an excluded segment.
    """
    by_digest, trees = _group_by_digest(clean), {}
    for digest in by_digest.keys() & excluded.by_digest.keys():
        listed = excluded.by_digest[digest]
        trees[digest] = EarliestOverlap([*by_digest[digest], *listed])
        for entry in listed:
            trees[digest].add(entry)
    kept, removed = [], []
    for entry, probe in clean:
        other = trees[probe.digest].find(entry) if probe.digest in trees else None
        if other is None:
            kept.append((entry, probe))
        else:
            removed.append((entry.path, f"same content as a video of --exclude: {other.path}"))
    return kept, removed


def _group_by_digest(clean: Clean) -> dict[str, list[VideoEntry]]:
    entries = {}
    for entry, probe in clean:
        entries.setdefault(probe.digest, []).append(entry)
    return entries


def find_duplicates(clean: Iterable[tuple[VideoEntry, VideoProbe]]) -> list[tuple[str, str]]:
    """Returns (path, path of the first file with the same digest) for each duplicate file."""
    first, duplicates = {}, {}
    for entry, probe in clean:
        original = first.setdefault(probe.digest, entry.path)
        if original != entry.path:
            duplicates[entry.path] = original
    return list(duplicates.items())


def remove_duplicates(clean: Clean) -> tuple[Clean, Problems]:
    """Removes copies of earlier videos. Returns the kept videos, and a reason for each other.

    Segments of a file and its copy are both kept if they do not overlap. A copy is removed even if
    its labels differ from those of the first file.
    """
    by_digest = _group_by_digest(clean).items()
    copied = {digest: own for digest, own in by_digest if len({entry.path for entry in own}) > 1}
    trees = {digest: EarliestOverlap(own) for digest, own in copied.items()}
    kept, removed = [], []
    for entry, probe in clean:
        tree = trees.get(probe.digest)
        original = tree.find(entry, other_path=True) if tree else None
        if original is None:
            kept.append((entry, probe))
            if tree:
                tree.add(entry)
        else:
            removed.append((entry.path, f"same content as an earlier video: {original.path}"))
    return kept, removed


@dataclasses.dataclass(frozen=True)
class Copies:
    """Result of `find_copies`.

    Attributes:
      clean: Videos that are kept.
      removed: Path of each removed video, with the reason.
      duplicates: Path of each duplicate file, and path of the first file with the same content.
      similar: For each video that looks like an earlier one, the two paths and how many of 64
          bits differ on average. None if frames were not compared.
      notes: Sentences for the user.
    """

    clean: Clean
    removed: Problems
    duplicates: list[tuple[str, str]]
    similar: list[tuple[str, str, float]] | None
    notes: list[str]


def find_copies(
    clean: Clean,
    excluded: ExcludedVideos,
    *,
    remove: bool,
    hashes: Path | None,
    workers: int,
    timeout: float,
) -> Copies:
    """Removes copies of excluded videos, and lists or removes duplicates among the other videos.

    Args:
      clean: Entries and probes of the videos.
      excluded: Videos to exclude.
      remove: Whether to remove copies of earlier videos.
      hashes: File that caches perceptual hashes. If None, frames are not compared.
      workers: Maximum number of processes.
      timeout: Time limit per video in seconds.
    """
    clean, removed = remove_excluded(clean, excluded)
    notes, similar = [], None
    if excluded.unreadable:
        notes.append(
            f"{excluded.unreadable} of {excluded.listed} videos of --exclude cannot be read, so "
            "copies of them are not removed"
        )
    if hashes is not None:
        cache = HashCache(hashes)
        found = find_similar(clean, excluded, cache, workers=workers, timeout=timeout)
        clean, similar, removed = found.clean, found.pairs, removed + found.removed
        if found.unhashed:
            notes.append(f"{found.unhashed} videos could not be compared by their frames")
    copies = find_duplicates(clean)
    if remove:
        clean, removed_copies = remove_duplicates(clean)
        removed += removed_copies
    return Copies(clean, removed, copies, similar, notes)


@dataclasses.dataclass(frozen=True)
class SimilarVideos:
    """Result of `find_similar`.

    Attributes:
      clean: Videos that are not similar to an excluded video.
      removed: Path of each removed video, with the reason.
      pairs: For each video that looks like an earlier one, the two paths and how many of 64 bits
          differ on average.
      unhashed: Number of videos that could not be compared.
    """

    clean: Clean
    removed: Problems
    pairs: list[tuple[str, str, float]]
    unhashed: int


def find_similar(
    clean: Clean, excluded: ExcludedVideos, cache: HashCache, *, workers: int, timeout: float
) -> SimilarVideos:
    """Compares the frames of all videos, including the excluded ones; see `frame_hashes`.

    Files with identical content are not listed as similar.
    """
    others = excluded.entries
    videos = [*others, *((entry, probe.digest) for entry, probe in clean)]
    hashes = _hash_all(videos, cache, workers=workers, timeout=timeout)
    removed, pairs, gone = [], [], set()
    for video, other, bits in frame_hashes.find_similar(hashes):
        (entry, digest), (original, other_digest) = videos[video], videos[other]
        if video < len(others):
            continue
        if other < len(others):
            gone.add(video - len(others))
            reason = f"looks like a video of --exclude ({bits:.1f} of 64 bits): {original.path}"
            removed.append((entry.path, reason))
        elif digest != other_digest:
            pairs.append((entry.path, original.path, round(bits, 2)))
    kept = [pair for number, pair in enumerate(clean) if number not in gone]
    return SimilarVideos(kept, removed, pairs, sum(values is None for values in hashes))


def _hash_all(
    videos: Entries, cache: HashCache, *, workers: int, timeout: float
) -> list[Hashes | None]:
    pending = {
        (digest, entry.start, entry.end): entry
        for entry, digest in videos
        if cache.get(digest, entry) is None
    }
    tasks = [(entry.path, entry.start, entry.end) for entry in pending.values()]
    results = map_in_workers(
        frame_hashes.VideoHasher(), tasks, workers=workers, timeout=timeout, ahead=len(tasks)
    )
    with contextlib.closing(results):
        for ((digest, *_), entry), hashes in zip(pending.items(), results, strict=True):
            if isinstance(hashes, tuple):
                cache.put(digest, entry, hashes)
    return [cache.get(digest, entry) for entry, digest in videos]
