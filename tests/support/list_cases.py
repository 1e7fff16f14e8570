"""Lists of videos, and manifests that are built from them."""

import csv

from invnext_jax.dataset_prep import indexing, probing
from invnext_jax.video_lists import lists

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
playing guitar,---0dWlqevI,19,29,train,0
abseiling,-3B32lodo2M,59,69,train,1
abseiling,0347ZoDXyP0,95,105,train,0
zumba,gone0000000,1,11,train,0
"""


def touch(folder, *names):
    """Creates files of one byte, and their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def read(path, **options):
    """Reads a list; `options` are fields of `ListOptions`."""
    return lists.read_list(path, lists.ListOptions(**options))


def read_entries(path, root, **options):
    """Returns (path below root, source, start, end, labels) of each entry that has a file."""
    return [
        (e.path.removeprefix(f"{root}/"), e.source, e.start, e.end, *e.labels.values())
        for e in read(path, **options).entries
        if not e.problem
    ]


def build(path, out, *, list_options=None, probe=probing.probe_video, **options):
    """Builds a manifest from a folder or list, and returns its summary."""
    options = indexing.IndexOptions(**{"workers": 2, "timeout": 20.0, "progress": False, **options})
    return indexing.build_manifest(path, out, list_options, options, probe)


def rows(path):
    """Returns the rows of a CSV file as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counts(summary):
    """Returns the numbers of listed, clean, quarantined and duplicate videos."""
    return summary.listed, summary.clean, summary.quarantined, summary.duplicates
