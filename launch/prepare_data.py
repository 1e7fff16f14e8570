"""Turns your videos, or a data set's lists, into a manifest to train from, and that into shards.

    python launch/prepare_data.py index FOLDER --out=data/mine.csv
    python launch/prepare_data.py index train.csv --videos=FOLDER --out=data/kinetics.csv
    python launch/prepare_data.py index TFDS_FOLDER --split=train --out=data/theirs.csv
    python launch/prepare_data.py shards --manifest=data/mine.csv --out=data/mine_shards

The list is a folder, a CSV of our own, Kinetics' CSV, lines of `path label`, or Something-Something
v2's train.json, or a TFDS data set of ArrayRecord files. Every file is probed: what cannot be read
goes to a quarantine list with the reason. `shards` encodes all videos of a manifest anew, small and
quick to decode, into a TFDS data set; it needs Apache Beam. The same command again goes on where it
was stopped; invnext_jax/data/indexing.py and preparing.py tell what they write.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.data import workers
from invnext_jax.dataset_prep import indexing, lists, reencode, shard_metadata, sharding, tfds_index

_OUT = flags.DEFINE_string(
    "out", None, "index: the .csv manifest to write; shards: the folder.", required=True
)
_VIDEOS = flags.DEFINE_string("videos", "", "Folder of the files; if not given: the list's own.")
_SOURCE = flags.DEFINE_string("source", "", "Name of the data set; if not given: derived.")
_TASK = flags.DEFINE_string("task", "class", "A foreign list's label becomes label_<task>.")
_CLASSES = flags.DEFINE_string(
    "classes", "", "Class names, JSON or one a line, which fixes their numbers (of another split)."
)
_FEATURE = flags.DEFINE_string("feature", "", "Of a TFDS data set: what holds the videos.")
_SPLIT = flags.DEFINE_string("split", "", "Of the data set; shards: train if not given.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one a core.")
_SECONDS = flags.DEFINE_float("seconds", 0.0, "Time limit for a file; 0: index 60, shards 600.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a manifest with other content.")
_MANIFEST = flags.DEFINE_string("manifest", "", "shards: the CSV of videos.")
_SHORT_SIDE = flags.DEFINE_integer("short_side", 256, "shards: pixels; never scaled up.")
_CRF = flags.DEFINE_integer("crf", 21, "shards: x264's quality, 0 to 51; less is better.")
_GOP = flags.DEFINE_integer("gop", 12, "shards: frames between key frames.")
_PRESET = flags.DEFINE_string("preset", "veryfast", "shards: x264's; slower ones are smaller.")
_SHARDS = flags.DEFINE_integer("shards", 0, "shards: how many; 0: one for 256 rows, at least 16.")
_RETRY = flags.DEFINE_bool("retry", False, "shards: again those with quarantined videos.")
_BEAM = flags.DEFINE_multi_string("beam", [], "shards: a flag for Beam; may be repeated.")


def main(argv: Sequence[str]) -> None:
    """Runs one of the two commands, and says how many videos are good and where the files are."""
    command = argv[1] if len(argv) > 1 else ""
    if command not in ("index", "shards") or len(argv) != (3 if command == "index" else 2):
        raise errors.UserError(
            "write: index FOLDER_OR_LIST --out=manifest.csv, or shards --manifest=CSV --out=FOLDER"
        )
    try:
        print(_index(argv[2]) if command == "index" else _make_shards())
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(1)  # Beam's threads would go on


def _index(given: str) -> indexing.IndexSummary | tfds_index.TfdsIndexSummary:
    options = indexing.IndexOptions(_count_workers(), _SECONDS.value or 60.0, _OVERWRITE.value)
    if tfds_index.is_dataset(given):
        chosen = {"split": _SPLIT.value, "feature": _FEATURE.value, "source": _SOURCE.value}
        return tfds_index.index_dataset(given, _OUT.value, **chosen, options=options)
    settings = lists.Settings(_VIDEOS.value, _SOURCE.value, _TASK.value, _CLASSES.value)
    return indexing.build_manifest(given, _OUT.value, settings, options)


def _make_shards() -> shard_metadata.ShardSummary:
    encoding = reencode.Encoding(_SHORT_SIDE.value, _CRF.value, _GOP.value, _PRESET.value)
    seconds = _SECONDS.value or 600.0
    options = sharding.ShardingOptions(
        _count_workers(), seconds, _SHARDS.value, _RETRY.value, tuple(_BEAM.value)
    )
    split = _SPLIT.value or "train"
    return sharding.prepare_shards(_MANIFEST.value, _OUT.value, split, encoding, options)


def _count_workers() -> int:
    return _WORKERS.value or workers.count_cores()


if __name__ == "__main__":
    errors.run_command(main, arguments=None)
