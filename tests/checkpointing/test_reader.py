import contextlib
import errno
import functools
import glob
import json
import os
import pathlib
import shutil

import jax
import ml_collections
import numpy as np
import optax
import pytest

from invnext_jax.checkpointing import manager, reader
from invnext_jax.checkpointing import restore as restore_lib
from invnext_jax.checkpointing.workdir_lock import Workdir
from invnext_jax.data import manifest
from invnext_jax.errors import UserError
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib


def open_data(toy_data, seed=0):
    arguments = {"batch_size": 4, "process_index": 0, "process_count": 1, "bad_videos": None}
    return iter(toy_data(None, seed=seed, **arguments))


@pytest.fixture
def abstract(toy_stage, toy_config):
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    init_fn = functools.partial(toy_stage.init_params, toy_config, toy_stage.make_model(toy_config))
    return state_lib.abstract_state(init_fn, optax.adam(1e-3), mesh)


def make_state(abstract, step):
    """A state whose every value is the step's number."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.full(leaf.shape, step, leaf.dtype), leaf.sharding), abstract
    )


@pytest.fixture
def run(toy_config, toy_data, abstract, tmp_path):
    """A workdir with checkpoints of steps 2 and 3; makes a checkpointer for a copy of it."""
    workdir = tmp_path / "run"
    toy_config.total_steps = 3
    data_iter = open_data(toy_data)
    with opened(workdir, toy_config) as saver:
        for step in (1, 2, 3):
            next(data_iter)
            saver.save(step, make_state(abstract, step), data_iter.get_state())
    return workdir


@contextlib.contextmanager
def opened(workdir, config):
    with contextlib.closing(Workdir(workdir)) as held:
        digest = manifest.hash_manifests(config.data.manifest)
        with contextlib.closing(manager.Checkpointer(held, config, digest)) as saver:
            yield saver


def restore(workdir, config, abstract, data_iter):
    with opened(workdir, config) as saver:
        return saver.restore(abstract, data_iter)


def steps(workdir):
    return sorted(os.listdir(workdir / "checkpoints"))


def test_state_and_data_come_back(run, toy_config, toy_data, abstract):
    data_iter = open_data(toy_data)
    state = restore(run, toy_config, abstract, data_iter)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(abstract, 3))
    straight = open_data(toy_data)
    for _ in range(3):
        next(straight)
    np.testing.assert_array_equal(next(data_iter)["video"], next(straight)["video"])


def test_a_new_run_restores_nothing(toy_config, toy_data, abstract, tmp_path):
    assert restore(tmp_path / "new", toy_config, abstract, open_data(toy_data)) is None


def test_the_last_ones_and_every_nth_are_kept(toy_config, toy_data, abstract, tmp_path):
    toy_config.checkpoint.update(keep_last=2, keep_every_steps=4)
    with opened(tmp_path / "run", toy_config) as saver:
        for step in range(1, 8):
            saver.save(step, make_state(abstract, step), {})
    assert steps(tmp_path / "run") == ["4", "6", "7"]


def test_saving_a_step_twice_is_harmless(run, toy_config, toy_data, abstract):
    with opened(run, toy_config) as saver:
        saver.save(3, make_state(abstract, 3), {})
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


def misname(folder):
    """A flipped bit in a name that the record holds."""
    path = folder / "meta/metadata"
    path.write_text(path.read_text().replace('"metric"', '"metrib"'))


def misplace(folder):
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
    "another name in the score": misname,
    "another kind of score": misplace,
    "an empty folder": empty,
    "no sums": lambda folder: os.remove(folder / "sums.json"),
    "half the sums": lambda folder: os.truncate(folder / "sums.json", 50),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(
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


def test_a_step_that_was_damaged_can_be_saved_again(run, toy_config, toy_data, abstract):
    empty(run / "checkpoints/3")
    with opened(run, toy_config) as saver:
        saver.restore(abstract, open_data(toy_data))
        saver.save(3, make_state(abstract, 3), {})
    assert steps(run) == ["2", "3", "damaged-3"]


def test_with_nothing_intact_a_run_does_not_start_afresh(run, toy_config, toy_data, abstract):
    for step in (2, 3):
        empty(run / f"checkpoints/{step}")
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        restore(run, toy_config, abstract, open_data(toy_data))
    assert steps(run) == ["2", "3"]


def test_a_save_that_was_killed_is_not_taken_for_a_checkpoint(run, toy_config, toy_data, abstract):
    os.rename(run / "checkpoints/3", run / "checkpoints/3.orbax-checkpoint-tmp")
    assert int(restore(run, toy_config, abstract, open_data(toy_data)).step) == 2


def test_a_changed_config_is_refused_with_a_table(run, toy_config, toy_data, abstract):
    toy_config.encoder.depth = 9
    with pytest.raises(UserError, match="config.encoder.depth: .* -> 9"):
        restore(run, toy_config, abstract, open_data(toy_data))


def test_a_checkpoint_of_another_format_is_refused_in_a_sentence(
    run, toy_config, toy_data, abstract, monkeypatch
):
    monkeypatch.setattr(manager.provenance, "FORMAT_VERSION", 99)
    with pytest.raises(UserError, match="was made by another version of the package"):
        restore(run, toy_config, abstract, open_data(toy_data))


def test_parameters_of_another_version_are_told_from_damage(run, toy_config, toy_data, abstract):
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


@pytest.mark.parametrize("kind", ["half the arrays", "no sums", "another kind of score"])
def test_parameters_of_a_damaged_checkpoint_are_passed_over(kind, run):
    DAMAGE[kind](run / "checkpoints/3")
    assert reader.restore_run(run).step == 2


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), TypeError("tree")])
def test_what_cannot_be_read_now_is_not_taken_for_damage(
    error, run, toy_config, toy_data, abstract, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(restore_lib, "probe", fail)
    monkeypatch.setattr(reader, "probe", fail)
    with pytest.raises(UserError, match="checkpoints/3 cannot be read: .*stays where it is"):
        restore(run, toy_config, abstract, open_data(toy_data))
    with pytest.raises(UserError, match="checkpoints/3 cannot be read"):
        reader.restore_run(run)
    assert steps(run) == ["2", "3"]


def test_files_that_may_not_be_opened_are_not_taken_for_damage(run, monkeypatch):
    def fail(path):
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manager.integrity, "_measure", fail)
    with pytest.raises(UserError, match="checkpoints/3 cannot be read: .*: Permission denied"):
        reader.restore_run(run)


def test_an_unfinished_run_is_named(run, toy_config, caplog):
    empty(run / "checkpoints/3")
    reader.restore_params(run)
    assert f"{run} is not finished: step 2 of 3" in caplog.messages


@pytest.mark.parametrize("content", ["nothing", "no checkpoint", "damage"])
def test_a_folder_without_intact_parameters_is_refused(content, tmp_path):
    if content != "nothing":
        (tmp_path / "checkpoints").mkdir()
    if content == "damage":
        (tmp_path / "checkpoints/5").mkdir()
    with pytest.raises(UserError, match="holds no"):
        reader.restore_params(tmp_path)
