"""Checkpoints of the toy stage, and kinds of damage to their files."""

import contextlib
import glob
import json
import os
import pathlib
import shutil

import jax
import numpy as np

from invnext_jax.checkpointing import manager, run_metadata
from invnext_jax.checkpointing.workdir import Workdir
from invnext_jax.data import manifest


def open_data(toy_data, seed=0):
    """Returns an iterator over batches of the toy data."""
    arguments = {"positions": range(4), "bad_videos": None}
    return iter(toy_data(None, seed=seed, **arguments))


def make_state(abstract, step):
    """Makes a state in which every value is the step number, and no step was skipped."""

    def fill(leaf, value):
        return jax.device_put(np.full(leaf.shape, value, leaf.dtype), leaf.sharding)

    state = jax.tree.map(lambda leaf: fill(leaf, step), abstract)
    return state.replace(skipped_in_row=fill(abstract.skipped_in_row, 0))


@contextlib.contextmanager
def open_checkpointer(workdir, config):
    """Yields the checkpointer of a locked workdir."""
    with contextlib.closing(Workdir(workdir)) as locked:
        digest = manifest.hash_manifests(config.data.manifest)
        record = run_metadata.describe_run(config, digest)
        with contextlib.closing(manager.Checkpointer(locked, config, record)) as checkpointer:
            yield checkpointer


def restore(workdir, config, abstract, data_iter):
    """Restores the newest intact checkpoint of a workdir; None if it has no checkpoint."""
    with open_checkpointer(workdir, config) as checkpointer:
        return checkpointer.restore(abstract, data_iter)


def steps(workdir):
    """Returns the names of the checkpoint folders."""
    return sorted(os.listdir(workdir / "checkpoints"))


def truncate(folder):
    for path in glob.glob(f"{folder}/state/**/d/*", recursive=True):
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)


def flip(folder):
    for path in glob.glob(f"{folder}/state/**/d/*", recursive=True):
        data = bytearray(pathlib.Path(path).read_bytes())
        data[len(data) // 2] ^= 255
        with open(path, "wb") as file:
            file.write(data)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def cut_record(folder):
    with open(folder / "meta/metadata", "r+") as file:
        file.truncate(50)


def rename_field(folder):
    """Flips a bit in a field name of the record."""
    path = folder / "meta/metadata"
    path.write_text(path.read_text().replace('"metric"', '"metrib"'))


def replace_score(folder):
    path = folder / "meta/metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score": 7}))


DAMAGE = {
    "no manifest": lambda folder: os.remove(folder / "state/manifest.ocdbt"),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no data": lambda folder: shutil.rmtree(folder / "data"),
    "no record": lambda folder: shutil.rmtree(folder / "meta"),
    "half a record": cut_record,
    "half the arrays": truncate,
    "flipped bits": flip,
    "another name in the score": rename_field,
    "another kind of score": replace_score,
    "an empty folder": empty,
    "no checksums": lambda folder: os.remove(folder / "sums.json"),
    "half the checksums": lambda folder: os.truncate(folder / "sums.json", 50),
}
