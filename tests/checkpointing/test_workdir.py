"""Workdirs that are removed, cannot be written, or are used by another process."""

import contextlib
import errno
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils.epath import backend as epath_backend
from toy_run import assert_equal_runs, untimed

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.checkpointing.workdir import Workdir
from invnext_jax.errors import UserError

pytestmark = [
    pytest.mark.usefixtures("first_device_only"),
    # Orbax leaves coroutines of a save that fails without awaiting them.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("when", [3, 4], ids=["before a save", "during a save"])
def test_workdir_removed_during_the_run_is_created_again(
    whole_run, toy_config, toy_data, tmp_path, caplog, when
):
    toy_data.before_batch[when] = lambda: shutil.rmtree(tmp_path / "run", ignore_errors=True)
    train.train(toy_config, tmp_path / "run")
    assert any("was removed during the run" in text for text in caplog.messages)
    params = [reader.restore_params(workdir)[0] for workdir in (whole_run, tmp_path / "run")]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert (tmp_path / "run/config.json").exists()
    assert untimed(tmp_path / "run")[-1] == untimed(whole_run)[-1]


def test_workdir_that_is_another_url_is_refused(toy_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir=s3://bucket/run must be a local path or gs://"):
        train.train(toy_config, "s3://bucket/run")
    with pytest.raises(UserError, match="s3://bucket/run must be a local path or gs://"):
        reader.restore_run("s3://bucket/run")
    assert not (tmp_path / "s3:").exists()


def test_unwritable_workdir_is_refused(toy_config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in --workdir=.*: Not a directory"):
        train.train(toy_config, tmp_path / "file/run")


def test_folders_that_cannot_be_renamed_are_refused_before_the_first_step(
    toy_config, toy_data, tmp_path, monkeypatch
):
    rename = os.rename

    def refuse_folders(source, target, **options):
        if os.path.isdir(source):
            raise OSError(errno.ENOSYS, "Function not implemented", source)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", refuse_folders)
    toy_data.before_batch[1] = lambda: pytest.fail("a batch was read")
    with pytest.raises(UserError, match="cannot be renamed .Function not implemented.* another f"):
        train.train(toy_config, tmp_path / "run")
    assert os.listdir(tmp_path / "run/checkpoints") == []


def test_old_checkpoint_that_cannot_be_removed_does_not_fail_a_save(
    whole_run, toy_config, tmp_path, monkeypatch, caplog
):
    toy_config.checkpoint.update(every_steps=1, keep_last=1)
    rmtree = epath_backend.os_backend.rmtree

    def refuse_step_2(path, *arguments, **options):
        if pathlib.Path(path).name == "2":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(epath_backend.os_backend, "rmtree", refuse_step_2)
    train.train(toy_config, tmp_path / "run")
    assert not [text for text in caplog.messages if "could not be saved" in text]
    folder = tmp_path / "run/checkpoints"
    assert f"old checkpoints in {folder} cannot be removed: Permission denied: {folder}/2" in (
        caplog.messages
    )
    assert sorted(os.listdir(folder)) == ["2", "6"]
    assert_equal_runs(whole_run, tmp_path / "run")


def test_second_run_in_a_workdir_is_refused_and_names_the_first(toy_config, tmp_path):
    with contextlib.closing(Workdir(tmp_path / "run")):
        with pytest.raises(UserError, match=rf'another process uses .*"pid": {os.getpid()}'):
            train.train(toy_config, tmp_path / "run")
    train.train(toy_config, tmp_path / "run")


def test_workdir_that_could_not_be_created_again_is_locked_once_it_exists(tmp_path):
    with contextlib.closing(Workdir(tmp_path / "up/run")) as locked:
        shutil.rmtree(tmp_path / "up")
        (tmp_path / "up").write_text("")
        assert "up" in locked.write_error(1)
        os.remove(tmp_path / "up")
        os.makedirs(tmp_path / "up/run")
        assert locked.write_error(1) == ""
        with pytest.raises(UserError, match="another process uses"):
            Workdir(tmp_path / "up/run")


def test_file_system_without_locks_logs_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    Workdir(tmp_path / "run").close()
    assert any("does not support locks" in text for text in caplog.messages)
