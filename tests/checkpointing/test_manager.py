"""Saving, restoring and reading checkpoints; run_metadata and checksums have their own tests."""

import contextlib
import errno
import functools
import glob
import json
import os
import pathlib
import shutil
import threading

import jax
import ml_collections
import numpy as np
import optax
import pytest

from invnext_jax import config_checks
from invnext_jax.checkpointing import manager, reader, run_metadata
from invnext_jax.checkpointing import restore as restore_lib
from invnext_jax.checkpointing.workdir import Workdir
from invnext_jax.data import manifest
from invnext_jax.errors import UserError
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib


def open_data(toy_data, seed=0):
    arguments = {"positions": range(4), "bad_videos": None}
    return iter(toy_data(None, seed=seed, **arguments))


@pytest.fixture
def abstract(toy_stage, toy_config):
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    init_fn = functools.partial(toy_stage.init_params, toy_config, toy_stage.make_model(toy_config))
    return state_lib.abstract_state(init_fn, optax.adam(1e-3), mesh)


def make_state(abstract, step):
    """Makes a state in which every value is the step number."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.full(leaf.shape, step, leaf.dtype), leaf.sharding), abstract
    )


@pytest.fixture
def run(toy_config, toy_data, abstract, tmp_path):
    """A workdir with checkpoints of steps 2 and 3."""
    workdir = tmp_path / "run"
    toy_config.total_steps = 3
    data_iter = open_data(toy_data)
    with open_checkpointer(workdir, toy_config) as checkpointer:
        for step in (1, 2, 3):
            next(data_iter)
            checkpointer.save(step, make_state(abstract, step), data_iter.get_state())
    return workdir


@contextlib.contextmanager
def open_checkpointer(workdir, config):
    with contextlib.closing(Workdir(workdir)) as locked:
        digest = manifest.hash_manifests(config.data.manifest)
        record = run_metadata.describe_run(config, digest)
        with contextlib.closing(manager.Checkpointer(locked, config, record)) as checkpointer:
            yield checkpointer


def restore(workdir, config, abstract, data_iter):
    with open_checkpointer(workdir, config) as checkpointer:
        return checkpointer.restore(abstract, data_iter)


def steps(workdir):
    return sorted(os.listdir(workdir / "checkpoints"))


def test_state_and_data_position_are_restored(run, toy_config, toy_data, abstract):
    data_iter = open_data(toy_data)
    state = restore(run, toy_config, abstract, data_iter)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(abstract, 3))
    uninterrupted = open_data(toy_data)
    for _ in range(3):
        next(uninterrupted)
    np.testing.assert_array_equal(next(data_iter)["video"], next(uninterrupted)["video"])


def test_new_run_restores_nothing(toy_config, toy_data, abstract, tmp_path):
    assert restore(tmp_path / "new", toy_config, abstract, open_data(toy_data)) is None


def test_last_and_every_nth_checkpoints_are_kept(toy_config, toy_data, abstract, tmp_path):
    toy_config.checkpoint.update(keep_last=2, keep_every_steps=4)
    with open_checkpointer(tmp_path / "run", toy_config) as checkpointer:
        for step in range(1, 8):
            checkpointer.save(step, make_state(abstract, step), {})
    assert steps(tmp_path / "run") == ["4", "6", "7"]


def test_saving_a_step_twice_changes_nothing(run, toy_config, toy_data, abstract):
    with open_checkpointer(run, toy_config) as checkpointer:
        checkpointer.save(3, make_state(abstract, 3), {})
    assert steps(run) == ["2", "3"]


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


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint_is_skipped_and_renamed(
    kind, run, toy_config, toy_data, abstract, caplog
):
    DAMAGE[kind](run / "checkpoints/3")
    data_iter = open_data(toy_data)
    state = restore(run, toy_config, abstract, data_iter)
    assert int(state.step) == 2
    assert steps(run) == ["2", "damaged-3"]
    warnings = [text for text in caplog.messages if "is damaged" in text]
    assert len(warnings) == 1
    assert str(run / "checkpoints/3") in warnings[0]


def test_damaged_step_can_be_saved_again(run, toy_config, toy_data, abstract):
    empty(run / "checkpoints/3")
    with open_checkpointer(run, toy_config) as checkpointer:
        checkpointer.restore(abstract, open_data(toy_data))
        checkpointer.save(3, make_state(abstract, 3), {})
    assert steps(run) == ["2", "3", "damaged-3"]


def test_run_without_intact_checkpoint_does_not_start_from_step_0(
    run, toy_config, toy_data, abstract
):
    for step in (2, 3):
        empty(run / f"checkpoints/{step}")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        restore(run, toy_config, abstract, open_data(toy_data))
    assert steps(run) == ["2", "3"]


def test_incomplete_checkpoint_is_not_restored(run, toy_config, toy_data, abstract):
    os.rename(run / "checkpoints/3", run / "checkpoints/3.orbax-checkpoint-tmp")
    assert int(restore(run, toy_config, abstract, open_data(toy_data)).step) == 2


def test_changed_config_is_refused_with_a_table(run, toy_config, toy_data, abstract):
    toy_config.encoder.depth = 9
    with pytest.raises(UserError, match="config.encoder.depth: .* -> 9"):
        restore(run, toy_config, abstract, open_data(toy_data))


def test_checkpoint_of_another_format_is_refused(run, toy_config, toy_data, abstract, monkeypatch):
    monkeypatch.setattr(manager.run_metadata, "FORMAT_VERSION", 99)
    with pytest.raises(UserError, match="was made by another version of the package"):
        restore(run, toy_config, abstract, open_data(toy_data))


def test_parameters_of_another_version_are_not_reported_as_damage(
    run, toy_config, toy_data, abstract
):
    kernel = abstract.params["encoder"]["kernel"]
    grown = jax.ShapeDtypeStruct((99, 8), kernel.dtype, sharding=kernel.sharding)
    params = {**abstract.params, "encoder": {**abstract.params["encoder"], "kernel": grown}}
    message = r"wrong shape: encoder/kernel \(12, 8\), expected \(99, 8\)"
    with pytest.raises(UserError, match=message):
        restore(run, toy_config, abstract.replace(params=params), open_data(toy_data))


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
    DAMAGE[kind](run / "checkpoints/3")
    assert reader.restore_run(run).step == 2


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), TypeError("tree")])
def test_unreadable_checkpoint_is_not_reported_as_damaged(
    error, run, toy_config, toy_data, abstract, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(restore_lib, "check_step", fail)
    monkeypatch.setattr(reader, "check_step", fail)
    with pytest.raises(UserError, match="checkpoints/3 cannot be read: .*was not moved"):
        restore(run, toy_config, abstract, open_data(toy_data))
    with pytest.raises(UserError, match="checkpoints/3 cannot be read"):
        reader.restore_run(run)
    assert steps(run) == ["2", "3"]


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("every_steps", 0),
        ("keep_last", 0),
        ("every_minutes", -1.0),
        ("keep_every_steps", -1),
        ("keep_best", -1),
        ("best_mode", "least"),
    ],
)
def test_invalid_checkpoint_option_is_named(toy_config, field, value):
    toy_config.checkpoint[field] = value
    with pytest.raises(UserError, match=f"^config.checkpoint.{field}={value!r} must be"):
        config_checks.check_config(toy_config)


def test_best_checkpoints_need_a_metric(toy_config):
    toy_config.checkpoint.update(keep_best=1, best_metric="")
    with pytest.raises(UserError, match="keep_best needs config.checkpoint.best_metric"):
        config_checks.check_config(toy_config)


@pytest.mark.parametrize("folder", ["4.orbax-checkpoint-tmp", "state.orbax-checkpoint-tmp"])
def test_threads_of_a_save_end_if_a_folder_cannot_be_created(
    run, toy_config, abstract, monkeypatch, folder
):
    def failing(create):
        def call(path, *arguments, **options):
            if folder in os.path.basename(path):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), os.fspath(path))
            return create(path, *arguments, **options)

        return call

    before = set(threading.enumerate())
    with open_checkpointer(run, toy_config) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", failing(os.mkdir))
            patch.setattr(os, "makedirs", failing(os.makedirs))
            checkpointer.save(4, make_state(abstract, 4), {"clips": 16})
            checkpointer.wait()
        assert checkpointer.saved_step != 4
        checkpointer.save(4, make_state(abstract, 4), {"clips": 16})
    assert "4" in steps(run)
    left = [t for t in threading.enumerate() if t not in before and not t.daemon]
    for thread in left:
        threading.Thread.join(thread, 5)  # a thread that is only late
    assert not [thread for thread in left if thread.is_alive()]
