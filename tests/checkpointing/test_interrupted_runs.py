"""Runs that are aborted, stopped, or continued without their checkpoints."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from toy_run import assert_equal_runs

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.monitoring import metrics_file

pytestmark = pytest.mark.usefixtures("first_device_only")


def test_abort_for_nonfinite_losses_saves_first_with_its_reason(
    toy_config, toy_data, tmp_path, capsys
):
    toy_data.bad_batches = (2, 3, 4, 5, 6)
    for _ in range(2):  # the second abort keeps what was saved before the first one
        with pytest.raises(NonFiniteError, match="No checkpoint is from before the skipped steps"):
            train.train(toy_config, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["5"]
    toy_data.bad_batches = ()
    train.train(toy_config, tmp_path / "run")
    assert "saved when the run was aborted: loss or gradient was not finite" in (
        capsys.readouterr().out
    )


def test_checkpoints_from_before_the_skipped_steps_are_kept_and_named(
    toy_config, toy_data, tmp_path, caplog
):
    run = tmp_path / "run"
    toy_config.checkpoint.update(every_steps=1, keep_last=2)
    toy_config.total_steps = 12
    toy_data.bad_batches = (4, *range(7, 12))
    toy_data.before_batch[8] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    train.train(toy_config, run)  # stops among the skipped steps
    toy_data.before_batch.clear()
    restart = rf"step 6; .*--checkpoint={run} --step=6 .* --config.init_from=FILE.safetensors"
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=restart):
            train.train(toy_config, run)
        assert {"5", "6"} < set(os.listdir(run / "checkpoints"))
    assert len(os.listdir(run / "checkpoints")) == 3
    toy_config.init_from, toy_config.init_from_unfinished = str(run), True
    with pytest.raises(UserError, match=rf"was aborted \(loss .* was not finite .*{restart}"):
        train.train(toy_config, tmp_path / "next")
    assert reader.restore_run(run).abort_reason.startswith("loss or gradient was not finite")
    assert "was saved when its run was aborted: loss or gradient was not finite" in caplog.text


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
