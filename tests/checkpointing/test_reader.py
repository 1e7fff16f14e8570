"""Reading parameters and configs of runs."""

import errno
import json
import os
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest
import tensorstore
from checkpoint_cases import DAMAGE, empty

from invnext_jax.checkpointing import manager, reader
from invnext_jax.errors import UserError


def test_parameters_and_config_are_read_without_the_model(run, toy_config):
    restored = reader.restore_run(run)
    np.testing.assert_array_equal(restored.params["head"]["bias"], np.full(3, 3.0))
    assert isinstance(restored.params["head"]["bias"], np.ndarray)
    assert restored.config == ml_collections.FrozenConfigDict(toy_config)
    assert restored.step == 3


def test_parameters_of_a_step(run):
    restored = reader.restore_run(run, step=2)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.params["head"]["bias"], np.full(3, 2.0))
    with pytest.raises(UserError, match=r"has no checkpoint of step 1: choose one of \[2, 3\]"):
        reader.restore_run(run, step=1)
    DAMAGE["half the arrays"](run / "checkpoints/2")
    with pytest.raises(UserError, match="checkpoints/2 is damaged: choose"):
        reader.restore_run(run, step=2)


@pytest.mark.parametrize("kind", ["half the arrays", "no checksums", "another kind of score"])
def test_parameters_of_a_damaged_checkpoint_are_skipped(kind, run):
    whole = reader.restore_run(run)
    assert whole[2:] == (3, (), whole.run_sha256, "")
    DAMAGE[kind](run / "checkpoints/3")
    assert reader.restore_run(run)[2:] == (2, (3,), whole.run_sha256, "")


def test_files_without_read_permission_are_not_reported_as_damaged(run, monkeypatch):
    def fail(path):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manager.checksums, "_size_and_digest", fail)
    with pytest.raises(UserError, match="checkpoints/3 cannot be read: .*: Permission denied"):
        reader.restore_run(run)


def test_unfinished_run_is_named(run, toy_config, caplog):
    empty(run / "checkpoints/3")
    reader.restore_params(run)
    assert f"{run} is not finished: step 2 of 3" in caplog.messages


@pytest.mark.parametrize("content", ["nothing", "no checkpoint", "damage"])
def test_folder_without_intact_parameters_is_refused(content, tmp_path):
    if content != "nothing":
        (tmp_path / "checkpoints").mkdir()
    if content == "damage":
        (tmp_path / "checkpoints/5").mkdir()
    with pytest.raises(UserError, match="has no (intact )?checkpoint"):
        reader.restore_params(tmp_path)


def test_only_names_with_the_digits_0_to_9_are_steps(tmp_path):
    for name in ("12", "3", "\u00b2", "\u0663", "5.damaged"):
        (tmp_path / name).mkdir()
    assert reader.finished_steps(tmp_path) == [3, 12]


FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures/checkpoint_v2"


@pytest.fixture
def foreign(tmp_path):
    """A copy of a checkpoint without checksums, which a stranger can change."""
    shutil.copytree(FIXTURE, tmp_path / "run")
    return tmp_path / "run"


def change_array(checkpoint, **fields):
    """Changes the metadata of an array in the database."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{checkpoint}/state/"})
    key = "params.encoder.bias/.zarray"
    content = json.loads(store.result().read(key).result().value) | fields
    store.result().write(key, json.dumps(content)).result()


@pytest.mark.parametrize("field", ["shape", "chunks"])
def test_arrays_larger_than_the_memory_are_refused_before_they_are_read(field, foreign):
    change_array(foreign / "checkpoints/2", **{field: [10**13]})
    with pytest.raises(UserError, match="checkpoints/2 need 40,000 GB, but this machine has"):
        reader.restore_run(foreign)


def test_small_files_of_large_arrays_are_refused_before_they_are_read(foreign):
    """Zeros can be compressed 30,000 times."""
    change_array(foreign / "checkpoints/2", shape=[2**29], chunks=[2**20])
    with pytest.raises(UserError, match="checkpoints/2 need 2.1 GB, but their files have only 0.0"):
        reader.restore_run(foreign)


@pytest.mark.parametrize("name", ["state/pad", "state/d/pad", "meta/d/pad"])
def test_files_without_arrays_and_holes_are_not_files_of_arrays(name, foreign):
    checkpoint = foreign / "checkpoints/2"
    change_array(checkpoint, shape=[2**29], chunks=[2**20])
    (checkpoint / name).parent.mkdir(exist_ok=True)
    with open(checkpoint / name, "wb") as file:
        if name == "state/d/pad":
            file.truncate(2**29)
        else:
            file.write(os.urandom(2**31 // 50))
    with pytest.raises(UserError, match="checkpoints/2 need 2.1 GB, but their files have only 0.0"):
        reader.restore_run(foreign)


def link_folder(checkpoint):
    shutil.move(checkpoint / "state/d", checkpoint / "state/e")
    (checkpoint / "state/d").symlink_to("..")


def replace_by_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link_to_proc(path):
    path.unlink()
    path.symlink_to("/proc/self/pagemap")  # regular, but has 256 GiB


def skip_elements(checkpoint):
    """Makes a parameter the last element of a list without other elements."""
    path = checkpoint / "state/_METADATA"
    content = json.loads(path.read_text())
    keys = next(iter(content["tree_metadata"].values()))["key_metadata"]
    keys[:] = [{"key": "list", "key_type": 2}, {"key": "5", "key_type": 1}]
    path.write_text(json.dumps(content))


def name_surrogate(checkpoint):
    path = checkpoint / "state/_METADATA"
    content = json.loads(path.read_text())
    for leaf in content["tree_metadata"].values():
        leaf["key_metadata"][-1]["key"] = "\ud800"
    path.write_text(json.dumps(content))


BLOSC = {"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 0, "blocksize": 0}
FORGERIES = {
    "another compressor": lambda checkpoint: change_array(checkpoint, compressor=BLOSC),
    "surrogate": name_surrogate,
    "large shapes": lambda checkpoint: os.truncate(checkpoint / "state/_METADATA", 2**40),
    "endless shapes": lambda checkpoint: link_to_proc(checkpoint / "state/_METADATA"),
    "large database": lambda checkpoint: os.truncate(checkpoint / "state/manifest.ocdbt", 2**40),
    "incomplete list": skip_elements,
    "endless array": lambda checkpoint: os.truncate(
        max((checkpoint / "state/d").iterdir(), key=os.path.getsize), 2**40
    ),
    "pipe": lambda checkpoint: replace_by_pipe(checkpoint / "state/_METADATA"),
    "pipe as checksums": lambda checkpoint: replace_by_pipe(checkpoint / "sums.json"),
    "link to a folder": link_folder,
    "deep shapes": lambda checkpoint: (checkpoint / "state/_METADATA").write_text("[" * 10**5),
    "deep record": lambda checkpoint: (checkpoint / "meta/metadata").write_text("[" * 10**5),
    "deep checksums": lambda checkpoint: (checkpoint / "sums.json").write_text("[" * 10**5),
    "list as record": lambda checkpoint: (checkpoint / "meta/metadata").write_text("[]"),
    "large record": lambda checkpoint: os.truncate(checkpoint / "meta/metadata", 2**40),
    **{
        f"config {config}": lambda checkpoint, config=config: (
            checkpoint / "meta/metadata"
        ).write_text(json.dumps({"config": config}))
        for config in (5, [], {}, {"ema": 5}, {"ema": {"decay": 0}, "total_steps": 1, "data": 5})
    },
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_forged_checkpoints_are_damaged(kind, foreign):
    FORGERIES[kind](foreign / "checkpoints/2")
    with pytest.raises(UserError, match="run has no intact checkpoint"):
        reader.restore_run(foreign)


def test_links_to_files_are_followed(foreign):
    record = foreign / "checkpoints/2/meta/metadata"
    shutil.move(record, foreign / "record")
    record.symlink_to(foreign / "record")
    assert reader.restore_run(foreign).step == 2


def test_arrays_outside_the_checkpoint_are_not_read(foreign):
    """A database may name files, but not outside of its folder."""
    base = f"file://{foreign}/checkpoints/2/state/"
    spec = {"driver": "ocdbt", "base": base, "value_data_prefix": "../outside/"}
    store = tensorstore.KvStore.open(spec).result()
    with pytest.raises(ValueError, match="Invalid key"):
        store.write("params.encoder.bias/0", b"x" * 10_000).result()


def test_the_path_of_a_run_is_utf_8(foreign):
    foreign.rename(folder := foreign.with_name(os.fsdecode(b"run\xff")))
    with pytest.raises(UserError, match=r"the run='.*/run.udcff' is not UTF-8: rename the folder"):
        reader.restore_run(folder)
