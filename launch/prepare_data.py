"""Prepares data: builds a manifest of videos to train from, and re-encodes a manifest into shards.

    python launch/prepare_data.py index FOLDER --out=data/mine.csv
    python launch/prepare_data.py index train.csv --videos=FOLDER --out=data/kinetics.csv
    python launch/prepare_data.py index TFDS_FOLDER --split=train --out=data/theirs.csv
    python launch/prepare_data.py shards --manifest=data/mine.csv --out=data/mine_shards

`index` reads a folder, a manifest of this package, Kinetics' CSV, a file with lines `path label`,
Something-Something v2's train.json, the lists of HMDB51 and UCF101, several of these separated by
commas, or a TFDS data set of ArrayRecord files. It probes every file, and writes unreadable files
and the reasons to a quarantine list. `shards` re-encodes all videos of a manifest into a TFDS data
set of small videos that decode fast. To resume an interrupted command, repeat it. docs/preparing.md
describes the files that are written.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.dataset_prep import indexing, reencode, shard_metadata, sharding, tfds_index
from invnext_jax.video_lists import lists
from invnext_jax.workers import process_worker as workers

_OUT = flags.DEFINE_string(
    "out", None, "index: the .csv manifest to write; shards: the output folder.", required=True
)
_VIDEOS = flags.DEFINE_string(
    "videos", "", "Folder of the video files; default: folder of the list."
)
_SOURCE = flags.DEFINE_string(
    "source", "", "Name of the data set; default: derived from the list (see docs/preparing.md)."
)
_TASK = flags.DEFINE_string(
    "task", "class", "Task of the labels of a published list; their column is label_<task>."
)
_CLASSES = flags.DEFINE_string(
    "classes",
    "",
    "File of class names, JSON or one per line, that defines the class ids, or 'alphabetical'. "
    "Default: the ids of other manifests in the folder of --out; if there are none, alphabetical "
    "order.",
)
_FOLD = flags.DEFINE_integer("fold", 1, "HMDB51: number of the split, 1 to 3.")
_EXCLUDE = flags.DEFINE_list(
    "exclude", [], "Lists of videos to exclude, separated by commas, such as val.csv."
)
_REMOVE_DUPLICATES = flags.DEFINE_bool(
    "remove_duplicates", False, "Exclude copies of earlier videos."
)
_PERCEPTUAL = flags.DEFINE_bool(
    "perceptual",
    False,
    "Also exclude videos that look like those of --exclude.",
)
_FEATURE = flags.DEFINE_string("feature", "", "TFDS data set: name of the feature with the videos.")
_SPLIT = flags.DEFINE_string(
    "split", "", "Split of a list or data set that has several splits; shards: train by default."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Number of processes; 0: one per CPU core.", lower_bound=0
)
_SECONDS = flags.DEFINE_float("seconds", 0.0, "Time limit per file; 0: index 60, shards 600.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a manifest that has different contents."
)
_MANIFEST = flags.DEFINE_string("manifest", "", "shards: CSV file of videos.")
_SHORT_SIDE = flags.DEFINE_integer(
    "short_side", 256, "shards: shorter side in pixels; videos are never scaled up."
)
_CRF = flags.DEFINE_integer("crf", 21, "shards: x264's quality, 0 to 51; lower is better.")
_GOP = flags.DEFINE_integer("gop", 12, "shards: maximum number of frames between key frames.")
_PRESET = flags.DEFINE_string(
    "preset", "veryfast", "shards: x264's preset; slower presets give smaller files."
)
_SHARDS = flags.DEFINE_integer(
    "shards", 0, "shards: number of shards; 0: one per 256 rows, at least 16."
)
_RETRY = flags.DEFINE_bool("retry", False, "shards: retry quarantined videos.")
_PROTOCOLS = flags.DEFINE_list(
    "protocols",
    [],
    "shards: protocols that the manifest may use in addition to file, gs, s3 and https.",
)
_OTHER_HOSTS = flags.DEFINE_bool(
    "other_hosts", False, "shards: allow files on other hosts and on this one in a remote manifest."
)
_BEAM = flags.DEFINE_multi_string(
    "beam", [], "shards: a flag for Beam on a cluster; may be repeated."
)

# Flags of `index` that do not apply to TFDS data sets.
_LIST_FLAGS = ("videos", "task", "classes", "fold", "exclude", "remove_duplicates", "perceptual")


def main(argv: Sequence[str]) -> None:
    """Runs one of the two commands and prints counts and output files."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    command = argv[1] if len(argv) > 1 else ""
    if command not in ("index", "shards") or len(argv) != (3 if command == "index" else 2):
        raise errors.UserError(
            "usage: index FOLDER_OR_LIST --out=manifest.csv, or shards --manifest=CSV --out=FOLDER"
        )
    try:
        print(_index(argv[2]) if command == "index" else _make_shards())
    except KeyboardInterrupt:
        print("interrupted: repeat the command to resume", file=sys.stderr, flush=True)
        os._exit(1)  # a normal exit would wait for the threads that write shards


def _index(path: str) -> indexing.IndexSummary | tfds_index.TfdsIndexSummary:
    options = indexing.IndexOptions(
        _count_workers(),
        _SECONDS.value or 60.0,
        _OVERWRITE.value,
        exclude=tuple(_EXCLUDE.value),
        remove_duplicates=_REMOVE_DUPLICATES.value,
        perceptual=_PERCEPTUAL.value,
    )
    is_tfds = tfds_index.is_tfds_dataset(path)
    for name in _LIST_FLAGS if is_tfds else ("feature",):
        if flags.FLAGS[name].present:
            raise errors.UserError(
                f"--{name} does not apply to {'a TFDS data set' if is_tfds else 'lists'}: remove it"
            )
    if is_tfds:
        names = {"split": _SPLIT.value, "feature": _FEATURE.value, "source": _SOURCE.value}
        return tfds_index.index_dataset(path, _OUT.value, **names, options=options)
    list_options = lists.ListOptions(
        _VIDEOS.value, _SOURCE.value, _TASK.value, _CLASSES.value, _SPLIT.value, _FOLD.value
    )
    return indexing.build_manifest(path, _OUT.value, list_options, options)


def _make_shards() -> shard_metadata.ShardSummary:
    encoding = reencode.Encoding(_SHORT_SIDE.value, _CRF.value, _GOP.value, _PRESET.value)
    timeout = _SECONDS.value or 600.0
    options = sharding.ShardingOptions(
        workers=_count_workers(),
        timeout=timeout,
        shards=_SHARDS.value,
        retry=_RETRY.value,
        beam=tuple(_BEAM.value),
        access=AccessRules(tuple(_PROTOCOLS.value), _OTHER_HOSTS.value),
    )
    split = _SPLIT.value or "train"
    return sharding.prepare_shards(_MANIFEST.value, _OUT.value, split, encoding, options)


def _count_workers() -> int:
    return _WORKERS.value or workers.count_cores()


if __name__ == "__main__":
    errors.run_command(main, arguments=None)
