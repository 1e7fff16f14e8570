"""Turns videos of yours, or a data set's lists, into a manifest to train from.

    python launch/prepare_data.py index FOLDER --out=data/mine.csv
    python launch/prepare_data.py index train.csv --videos=FOLDER --out=data/kinetics.csv

The list is a folder, a CSV of our own, Kinetics' CSV, lines of `path label`, or Something-Something
v2's train.json. Every file is probed: what cannot be read goes to a quarantine list with the
reason. The same command again goes on where it was stopped; invnext_jax/data/indexing.py tells
what it writes.
"""

import os
from collections.abc import Sequence

from absl import flags

from invnext_jax import errors
from invnext_jax.data import indexing, lists

_OUT = flags.DEFINE_string("out", None, "The .csv manifest to write.", required=True)
_VIDEOS = flags.DEFINE_string("videos", "", "Folder of the files; if not given: the list's own.")
_SOURCE = flags.DEFINE_string("source", "", "Name of the data set; if not given: derived.")
_TASK = flags.DEFINE_string("task", "class", "A foreign list's label becomes label_<task>.")
_CLASSES = flags.DEFINE_string(
    "classes", "", "Class names, JSON or one a line, which fixes their numbers (of another split)."
)
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one a core.")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Time limit for probing a file.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a manifest with other content.")


def main(argv: Sequence[str]) -> None:
    """Indexes, and says how many videos are good and where the files are."""
    if len(argv) != 3 or argv[1] != "index":
        raise errors.UserError("write: index FOLDER_OR_LIST --out=manifest.csv")
    settings = lists.Settings(_VIDEOS.value, _SOURCE.value, _TASK.value, _CLASSES.value)
    workers = _WORKERS.value or os.cpu_count() or 1
    options = indexing.Options(workers, _SECONDS.value, _OVERWRITE.value)
    try:
        print(indexing.build_manifest(argv[2], _OUT.value, settings, options))
    except KeyboardInterrupt:
        raise SystemExit("stopped: the same command goes on from here") from None


if __name__ == "__main__":
    errors.run_command(main, arguments=None)
