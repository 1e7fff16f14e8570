"""Held-out videos: those of a manifest that are not trained on, and separate manifests."""

from typing import Any

import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.copies import COPIES_SECONDS, find_copies, name_originals
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError


def held_out_rows(manifest: Manifest, count: int) -> np.ndarray:
    """Returns the rows that are held out, in ascending order.

    Whole files are drawn at random until there are at least `count` rows, so that no file has
    segments on both sides, even if its name has several spellings. For records of shards, these are
    the files from which the records were made (the column `original`), which may also be in the
    manifest. The draw depends only on the text of the manifest, not on the files or the seed of the
    run, so that it is the same on all hosts and in resumed runs.

    Args:
      manifest: the manifest.
      count: `config.data.held_out`, at least 1.

    Raises:
      UserError: more than half of the rows would be held out.
    """
    originals = manifest.original.tolist()
    names = zip(originals, manifest.paths, manifest.record.tolist(), strict=True)
    videos = [original or (path, record) for original, path, record in names]
    numbers = {video: number for number, video in enumerate(dict.fromkeys(videos))}
    video_n = np.fromiter((numbers[video] for video in videos), np.int64, len(videos))
    order_v = np.random.default_rng(0).permutation(len(numbers))
    rows_v = np.bincount(video_n, minlength=len(numbers))[order_v]
    drawn = np.searchsorted(np.cumsum(rows_v), count) + 1
    is_drawn_n = np.isin(video_n, order_v[:drawn])
    # Numbers above depend only on names within the manifest, so that old draws do not change.
    keys, _ = name_originals(manifest)
    drawn_keys = {keys[row] for row in np.flatnonzero(is_drawn_n)}
    rows = np.array([row for row, key in enumerate(keys) if key in drawn_keys])
    if 2 * len(rows) > len(manifest):
        raise UserError(
            f"config.data.held_out={count} would hold out {len(rows)} of {len(manifest)} videos, "
            f"but at most half are allowed: lower it, for example to {len(manifest) // 4}"
        )
    return rows


def training_rows(manifest: Manifest, count: int) -> np.ndarray | None:
    """Returns the other rows, in ascending order; None for all rows if `count` is 0.

    Args:
      manifest: the manifest.
      count: see `held_out_rows`.

    Raises:
      UserError: see `held_out_rows`.
    """
    if not count:
        return None
    return np.setdiff1d(np.arange(len(manifest)), held_out_rows(manifest, count))


def count_training_videos(manifest: Manifest, count: int) -> int:
    """Returns the number of rows that are trained on.

    Args:
      manifest: the manifest.
      count: see `held_out_rows`; 0 holds out none.

    Raises:
      UserError: see `held_out_rows`.
    """
    rows = training_rows(manifest, count)
    return len(manifest if rows is None else rows)


def describe_copies(manifest: Manifest, count: int) -> str:
    """Returns a sentence about held-out videos with copies among the others; "" if none is known.

    Symbolic links and files or records with the same content are copies. The contents are compared
    for at most about `copies.COPIES_SECONDS`.

    Args:
      manifest: the manifest.
      count: see `held_out_rows`; 0 holds out none.

    Raises:
      UserError: see `held_out_rows`.
    """
    if not count:
        return ""
    rows = held_out_rows(manifest, count)
    trained = np.setdiff1d(np.arange(len(manifest)), rows)
    copies = find_copies(manifest, manifest, trained, rows, seconds=COPIES_SECONDS)
    if not copies:
        return ""
    row, other = next(iter(copies.items()))
    examples = f"{ascii(manifest[row].name)} and {ascii(manifest[other].name)}"
    return (
        f"warning: {len(copies)} of {len(rows)} held-out videos have copies among the training "
        f"videos, such as {examples}. Remove the copies from the manifest"
    )


def describe_unused(config: Any, manifest: Manifest) -> str:
    """Returns a sentence if the run has held-out videos that it does not evaluate, or "".

    Args:
      config: the run's config.
      manifest: the rows of `config.data.manifest`.
    """
    count = config.data.held_out
    if not count or (config.eval.every_steps and not config.eval.manifest):
        return ""
    reason = "is set" if config.eval.every_steps else "is 0"
    option = "manifest" if config.eval.every_steps else "every_steps"
    return (
        f"{len(held_out_rows(manifest, count)):,} of {len(manifest):,} videos are not trained on "
        f"(config.data.held_out={count}); nothing evaluates them, because config.eval.{option} "
        f"{reason}"
    )


def find_shared_manifest(held_out: str, training: str) -> str | None:
    """Returns the first held-out manifest with the content of a training manifest, or None.

    Args:
      held_out: names of manifests, separated by commas.
      training: names of manifests, separated by commas.
    """
    hashes = set(map(manifest_lib.hash_manifests, manifest_lib.list_manifests(training)))
    names = manifest_lib.list_manifests(held_out)
    return next((name for name in names if manifest_lib.hash_manifests(name) in hashes), None)
