"""Reading parameters and configs of runs."""

import errno

import ml_collections
import numpy as np
import pytest
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
    DAMAGE[kind](run / "checkpoints/3")
    assert reader.restore_run(run).step == 2


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
