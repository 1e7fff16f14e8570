"""Faults during a run: it continues with a warning, or ends with an error of one sentence."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from etils.epath import backend as epath_backend
from toy_run import assert_equal_runs, untimed

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.checkpointing.workdir import Workdir
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.monitoring import metrics_file

pytestmark = [
    pytest.mark.usefixtures("first_device_only"),
    # Orbax leaves coroutines of a save that fails without awaiting them.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
DISK_BYTES = 4 * 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk):
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("free_is_known", [True, False], ids=["free space known", "write fails"])
def test_full_disk_loses_a_checkpoint_but_no_step(
    whole_run, toy_config, toy_data, small_disk, caplog, monkeypatch, free_is_known
):
    if not free_is_known:  # as with a quota smaller than the free space of the disk
        usage = shutil.disk_usage
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1 << 50))
    toy_config.checkpoint.every_steps = 2

    def fill_after_a_save():
        while not (small_disk / "run/checkpoints/2").exists():
            time.sleep(0.01)
        fill(small_disk)

    toy_data.before_batch[4] = fill_after_a_save
    toy_data.before_batch[6] = lambda: os.remove(small_disk / "ballast")
    train.train(toy_config, small_disk / "run")
    warnings = [text for text in caplog.messages if "could not be saved" in text]
    assert len(warnings) == 1
    assert "step 4 could not be saved" in warnings[0]
    assert str(small_disk / "run/checkpoints") in warnings[0]
    assert "bytes free" in warnings[0]
    assert sorted(os.listdir(small_disk / "run/checkpoints")) == ["2", "6"]
    assert_equal_runs(whole_run, small_disk / "run")


def test_run_that_can_never_save_ends_with_an_error(toy_config, small_disk, caplog):
    fill(small_disk)
    os.truncate(small_disk / "ballast", os.path.getsize(small_disk / "ballast") - 2**15)
    with pytest.raises(UserError, match="free disk space.*No checkpoint exists; the run starts"):
        train.train(toy_config, small_disk / "run")
    assert any("step 3 could not be saved" in text for text in caplog.messages)


def test_full_disk_reported_by_fsync_is_an_error_of_the_save(
    toy_config, tmp_path, caplog, monkeypatch
):
    def fail(file):
        del file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="free disk space.*No checkpoint exists; the run starts"):
        train.train(toy_config, tmp_path / "run")
    pattern = re.compile(r"step 3 could not be saved in \S+ \(No space left on device: ")
    assert any(map(pattern.match, caplog.messages))
    assert not list((tmp_path / "run").glob(".*.part"))


def test_metrics_held_back_by_a_full_disk_are_written_later(small_disk, caplog):
    writer = metrics_file.MetricWriter(small_disk, 0)
    writer.write({"step": 1, "loss": 1.0})
    fill(small_disk)
    for step in range(2, 200):
        writer.write({"step": step, **{f"metric_{i}": float(step) for i in range(20)}})
    assert sum("records are kept" in text for text in caplog.messages) == 1
    os.remove(small_disk / "ballast")
    writer.write({"step": 200, "loss": 0.0})
    writer.close()
    assert [record["step"] for record in metrics_file.read_metrics(small_disk)] == [*range(1, 201)]


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


LIMITED = """
import resource, sys, types
sys.path[:0] = sys.argv[2:]
import toy_run
from absl import flags
flags.FLAGS.mark_as_parsed()
from invnext_jax import errors, train
from invnext_jax.stages import registry
registry.STAGES["toy"] = toy_run.make_toy_stage()
train.pipeline.make_train_dataset = toy_run.ToyData()
config = toy_run.make_toy_config(sys.argv[1] + "/manifest.csv")
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
with errors.exit_on_user_error():
    train.train(config, sys.argv[1] + "/run")
"""


def test_quota_is_one_sentence_with_its_cause_and_no_traceback(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,source\na.mp4,toy\n")
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(root), str(root / "tests/support")],
        env={**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    lines = ended.stderr.splitlines()
    failed = [line for line in lines if "could not be saved" in line]
    assert len(failed) >= 3 and all("(File too large" in line for line in failed), ended.stderr
    assert "Traceback" not in ended.stderr and len(lines) < 20, ended.stderr


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


def test_abort_for_nonfinite_losses_saves_first_with_its_reason(
    toy_config, toy_data, tmp_path, capsys
):
    toy_data.bad_batches = (2, 3, 4, 5, 6)
    for _ in range(2):  # the second abort keeps what was saved before the first one
        with pytest.raises(NonFiniteError):
            train.train(toy_config, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["3", "5"]
    toy_data.bad_batches = ()
    train.train(toy_config, tmp_path / "run")
    assert "saved when the run was aborted: loss or gradient was not finite" in (
        capsys.readouterr().out
    )


def test_step_saved_at_an_abort_is_logged(toy_config, toy_data, tmp_path):
    toy_data.bad_batches = (2, 3, 4, 5, 6)
    with pytest.raises(NonFiniteError):
        train.train(toy_config, tmp_path / "run")
    last = max(int(name) for name in os.listdir(tmp_path / "run/checkpoints"))
    logged = [record["step"] for record in metrics_file.read_metrics(tmp_path / "run")]
    assert logged == list(range(1, last + 1))


def test_abort_after_a_successful_save_is_saved_again(toy_config, toy_data, tmp_path):
    toy_config.total_steps = 12
    toy_data.bad_batches = (2, 3, 4)
    with pytest.raises(NonFiniteError):
        train.train(toy_config, tmp_path / "run")
    toy_data.bad_batches = (8, 9, 10)
    with pytest.raises(NonFiniteError):
        train.train(toy_config, tmp_path / "run")
    newest = max((tmp_path / "run/checkpoints").iterdir(), key=lambda path: int(path.name))
    assert int(newest.name) > 9
    assert json.loads((newest / "meta/metadata").read_text())["aborted"]


def test_signal_interrupts_the_wait_for_data(whole_run, toy_config, toy_data, tmp_path, capsys):
    def stall():
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(60)

    toy_data.before_batch[5] = stall
    start = time.monotonic()
    train.train(toy_config, tmp_path / "run")
    assert time.monotonic() - start < 40
    assert "SIGTERM: stopped after step 4 of 6" in capsys.readouterr().out
    toy_data.before_batch.clear()
    train.train(toy_config, tmp_path / "run")
    assert_equal_runs(whole_run, tmp_path / "run")


def test_timed_checkpoints_ignore_jumps_of_the_time_of_day(
    whole_run, toy_config, toy_data, tmp_path, monkeypatch
):
    real, jumps = time.time, []
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** len(jumps) * 1e5)
    for step in range(2, 7):
        toy_data.before_batch[step] = lambda: jumps.append(1)
    toy_config.checkpoint.update(every_steps=1000, every_minutes=1e-6, keep_last=9)
    train.train(toy_config, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["1", "2", "3", "4", "5", "6"]
    assert_equal_runs(whole_run, tmp_path / "run")


def test_best_and_last_checkpoints_are_kept(toy_config, tmp_path):
    toy_config.checkpoint.update(every_steps=1, keep_last=1, keep_best=2)
    train.train(toy_config, tmp_path / "run")
    losses = {
        record["step"]: record["loss"] for record in metrics_file.read_metrics(tmp_path / "run")
    }
    best = sorted(losses, key=losses.get)[:2]
    assert {int(name) for name in os.listdir(tmp_path / "run/checkpoints")} == {*best, 6}
    saved = json.loads((tmp_path / "run/checkpoints/6/meta/metadata").read_text())["score"]
    assert saved == {"metric": "loss", "value": losses[6]}


def test_best_checkpoints_are_kept_after_a_restart(toy_config, toy_data, tmp_path):
    toy_config.checkpoint.update(every_steps=1, keep_last=1, keep_best=1, best_mode="max")
    toy_data.before_batch[4] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):
        train.train(toy_config, tmp_path / "run")
        toy_data.before_batch.clear()
    losses = {
        record["step"]: record["loss"] for record in metrics_file.read_metrics(tmp_path / "run")
    }
    kept = {int(name) for name in os.listdir(tmp_path / "run/checkpoints")}
    assert kept == {max(losses, key=losses.get), 6}


def test_unknown_best_metric_is_refused_with_a_list(toy_config, tmp_path):
    toy_config.checkpoint.update(keep_best=1, best_metric="accuracy")
    with pytest.raises(UserError, match="best_metric='accuracy' is not a .*loss/distance"):
        train.train(toy_config, tmp_path / "run")


def test_incomplete_checkpoint_is_removed_with_a_warning(
    whole_run, toy_config, tmp_path, caplog, monkeypatch
):
    incomplete = whole_run / "checkpoints/6.orbax-checkpoint-tmp"
    os.rename(whole_run / "checkpoints/6", incomplete)
    train.train(toy_config, whole_run)
    assert (
        f"{incomplete} is incomplete because its run was killed; it was removed" in caplog.messages
    )
    assert sorted(os.listdir(whole_run / "checkpoints")) == ["3", "6"]


def test_metrics_of_lost_checkpoints_are_kept(whole_run, toy_config, capsys):
    before = (whole_run / "metrics.jsonl").read_text()
    for name in ("metrics.jsonl.old", "metrics.jsonl.old-2"):
        shutil.rmtree(whole_run / "checkpoints")
        train.train(toy_config, whole_run)
        assert "No checkpoint exists; the run starts from step 0" in capsys.readouterr().out
        if name.endswith("old"):
            assert (whole_run / name).read_text() == before
        assert (whole_run / name).exists()
    assert [record["step"] for record in metrics_file.read_metrics(whole_run)] == [1, 2, 3, 4, 5, 6]


def test_metrics_of_another_config_without_a_checkpoint_are_unchanged(whole_run, toy_config):
    shutil.rmtree(whole_run / "checkpoints")
    before = (whole_run / "metrics.jsonl").read_text()
    toy_config.seed = 7
    with pytest.raises(UserError, match=r"and no checkpoint\. .*\n  config.seed: 0 -> 7"):
        train.train(toy_config, whole_run)
    assert (whole_run / "metrics.jsonl").read_text() == before


FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures/checkpoint_v2"


def test_run_of_format_2_continues(toy_config, tmp_path):
    """The fixture is from the first version with format 2, with jax 0.10.2 and orbax 0.12.8."""
    import safetensors.numpy

    workdir = tmp_path / "old"
    shutil.copytree(FIXTURE / "checkpoints", workdir / "checkpoints")
    toy_config.total_steps = 4
    assert train.train(toy_config, workdir)["step"] == 4
    assert [r["step"] for r in metrics_file.read_metrics(workdir)] == [3, 4]
    restored = reader.restore_params(workdir)[0]
    expected = safetensors.numpy.load_file(FIXTURE / "params_of_step_4.safetensors")
    for name, array in expected.items():
        group, leaf = name.split("/")
        np.testing.assert_allclose(restored[group][leaf], array, rtol=1e-4, atol=1e-6)
