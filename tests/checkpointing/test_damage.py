"""Damaged checkpoints are skipped and renamed; those that cannot be read are kept."""

import errno
import os

import pytest
from checkpoint_cases import DAMAGE, empty, make_state, open_checkpointer, open_data, restore, steps

from invnext_jax.checkpointing import reader
from invnext_jax.checkpointing import restore as restore_lib
from invnext_jax.errors import UserError


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
