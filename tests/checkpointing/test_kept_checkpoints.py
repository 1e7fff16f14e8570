"""Checkpoints at intervals of time, the best ones, and those of killed runs and older versions."""

import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
from toy_run import assert_equal_runs

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.errors import UserError
from invnext_jax.monitoring import metrics_file

pytestmark = pytest.mark.usefixtures("first_device_only")


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
    assert metrics_file.read_metrics(tmp_path / "run") == []  # before the first step


def test_a_diagnostic_that_few_steps_have_can_be_the_best_metric(toy_config, tmp_path):
    toy_config.log.update(every_steps=1, diagnostics_every_steps=4)
    toy_config.checkpoint.update(every_steps=2, keep_last=9, keep_best=1)
    toy_config.checkpoint.best_metric = "encoder_norm"
    train.train(toy_config, tmp_path / "run")
    records = metrics_file.read_metrics(tmp_path / "run")
    norms = {r["step"]: r["encoder_norm"] for r in records if "encoder_norm" in r}
    metas = [reader.read_json(tmp_path / f"run/checkpoints/{n}", "meta") for n in (2, 4, 6)]
    assert [meta["score"]["value"] for meta in metas] == [norms[1], norms[4], None]


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
