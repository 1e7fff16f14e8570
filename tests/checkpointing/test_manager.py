"""Saving and restoring checkpoints, and the options for it."""

import errno
import os
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_cases import make_state, open_checkpointer, open_data, restore, steps

from invnext_jax import config_checks
from invnext_jax.checkpointing import manager
from invnext_jax.errors import UserError


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


def test_error_of_a_failed_save_is_not_raised_again_by_close(
    toy_config, toy_data, abstract, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    close = ocp.CheckpointManager.close

    def close_and_fail(manager):
        close(manager)
        fail()

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    monkeypatch.setattr(ocp.CheckpointManager, "close", close_and_fail)
    with (
        pytest.raises(UserError, match="No space left on device.*the run starts from step 0"),
        open_checkpointer(tmp_path / "run", toy_config) as checkpointer,
    ):
        position = open_data(toy_data).get_state()
        checkpointer.finish(1, make_state(abstract, 1), position, None)


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("every_steps", 0),
        ("keep_last", 0),
        ("every_minutes", -1.0),
        ("keep_every_steps", -2),
        ("keep_every_steps", 301),  # not a multiple of every_steps
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
