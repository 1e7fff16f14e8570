"""Runs on a full disk or with a quota continue with a warning, or end with one sentence."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import orbax.checkpoint as ocp
import pytest
from processes import FAST_TO_COMPILE
from toy_run import assert_equal_runs

from invnext_jax import train
from invnext_jax.errors import UserError
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


def test_late_writes_of_a_failed_save_do_not_hide_its_cause(
    toy_config, tmp_path, caplog, monkeypatch
):
    causes = [errno.EDQUOT] + [errno.EEXIST, errno.ENOTEMPTY] * 5

    def fail(self, step, *args, **options):
        code = causes.pop(0)
        raise OSError(code, os.strerror(code), f"{tmp_path}/{step}.orbax-checkpoint-tmp")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(UserError, match=r"\(Disk quota exceeded: .*free disk space"):
        train.train(toy_config, tmp_path / "run")
    failed = [text for text in caplog.messages if "could not be saved" in text]
    assert len(failed) >= 3 and all("(Disk quota exceeded" in text for text in failed)


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
    environment = {**os.environ, "XLA_FLAGS": FAST_TO_COMPILE}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # its files are larger than the limit
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(root), str(root / "tests/support")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    lines = ended.stderr.splitlines()
    failed = [line for line in lines if "could not be saved" in line]
    assert len(failed) >= 3 and all("(File too large" in line for line in failed), ended.stderr
    assert "Traceback" not in ended.stderr and len(lines) < 20, ended.stderr
