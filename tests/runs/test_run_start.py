"""How a run starts: resumed, on other devices, or from the parameters of another run."""

import contextlib
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from toy_run import FEATURES, KilledError, assert_equal_runs, final_params, kill, untimed

from invnext_jax import train
from invnext_jax.errors import UserError
from invnext_jax.monitoring import metrics_file
from invnext_jax.training import compilation
from invnext_jax.weights import export

pytestmark = pytest.mark.usefixtures("first_device_only")


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    whole_run, toy_config, toy_data, tmp_path
):
    toy_data.before_batch[3] = kill
    with pytest.raises(KilledError):
        train.train(toy_config, tmp_path / "killed")
    toy_data.before_batch.clear()
    train.train(toy_config, tmp_path / "killed")
    assert_equal_runs(whole_run, tmp_path / "killed")


def test_a_run_resumes_on_another_mesh(
    whole_run, toy_config, toy_data, first_device_only, tmp_path, monkeypatch
):
    toy_data.before_batch[5] = kill
    with pytest.raises(KilledError):
        train.train(toy_config, tmp_path / "moved")
    toy_data.before_batch.clear()
    monkeypatch.setattr(train.mesh_lib.jax, "devices", lambda: first_device_only)
    toy_config.mesh.update(data=2, fsdp=2, tensor=2, sequence=1)
    train.train(toy_config, tmp_path / "moved")
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6),
        final_params(whole_run),
        final_params(tmp_path / "moved"),
    )


def test_a_run_moved_to_fewer_devices_twice_has_the_same_losses(
    toy_config, toy_data, first_device_only, tmp_path, monkeypatch
):
    def train_on(devices, workdir):
        monkeypatch.setattr(train.mesh_lib.jax, "devices", lambda: first_device_only[:devices])
        train.train(toy_config, tmp_path / workdir)
        return [record["loss"] for record in metrics_file.read_metrics(tmp_path / workdir)]

    toy_config.mesh.data = -1
    toy_config.checkpoint.every_steps = 2
    whole = train_on(8, "whole")
    for devices, stop in ((8, 3), (4, 5)):
        toy_data.before_batch = {stop: lambda: os.kill(os.getpid(), signal.SIGTERM)}
        train_on(devices, "moved")
    toy_data.before_batch = {}
    moved = train_on(2, "moved")
    np.testing.assert_allclose(moved, whole, rtol=1e-5)
    assert len(moved) == 6


def test_a_changed_model_is_refused_with_a_table(whole_run, toy_config):
    toy_config.encoder.width = 128
    toy_config.batch_size = 16
    with pytest.raises(UserError) as caught:
        train.train(toy_config, whole_run)
    assert "config.batch_size: 8 -> 16" in str(caught.value)
    assert "config.encoder.width: 64 -> 128" in str(caught.value)
    assert json.loads((whole_run / "config.json").read_text())["batch_size"] == 8


def test_options_read_only_at_the_start_cannot_change_later(whole_run, toy_config):
    toy_config.init_parts = ("encoder",)
    toy_config.predictor.weights = "text.safetensors"
    with pytest.raises(UserError) as caught:
        train.train(toy_config, whole_run)
    assert "config.init_parts: [] -> ['encoder']" in str(caught.value)
    assert "config.predictor.weights: '' -> 'text.safetensors'" in str(caught.value)


def test_a_longer_run_and_another_log_are_allowed(whole_run, toy_config):
    toy_config.total_steps = 8
    toy_config.log.every_steps = 2
    assert train.train(toy_config, whole_run)["step"] == 8


def test_a_run_that_already_has_more_steps_changes_no_file(whole_run, toy_config, capsys, caplog):
    def contents():
        return {path: path.read_bytes() for path in whole_run.rglob("*") if path.is_file()}

    before = contents()
    toy_config.total_steps = 4
    train.train(toy_config, whole_run)
    assert contents() == before
    out = capsys.readouterr().out
    assert f"{whole_run} already has 6 steps, and config.total_steps=4: there is nothing to" in out
    assert not any("learning rate" in text for text in (out, *caplog.messages))


def test_frozen_groups_are_not_counted_as_trained(toy_config, tmp_path, capsys):
    toy_config.total_steps = 1
    toy_config.optimizer.frozen = ("head",)
    train.train(toy_config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "toy tiny: 0.00 M trained parameters, 0.00 M frozen; batch 8 on" in out
    assert "trained parameters: encoder 0.00 M; 0.00 M in all" in out
    assert "frozen parameters: head 0.00 M, map 0.00 M; 0.00 M in all" in out


def test_option_without_effect_ends_before_the_workdir_is_created(toy_config, tmp_path):
    with pytest.raises(UserError, match="^config.epochs=62.0 is not used, because config.total_st"):
        train.train(toy_config, tmp_path / "run", overrides=["seed", "epochs"])
    assert not (tmp_path / "run").exists()


def test_a_longer_run_states_the_jump_of_the_learning_rate(whole_run, toy_config, caplog):
    toy_config.total_steps = 12
    train.train(toy_config, whole_run)
    rates = {r["step"]: r["learning_rate"] for r in metrics_file.read_metrics(whole_run)}
    (warning,) = [text for text in caplog.messages if "learning rate" in text]
    assert "config.total_steps changes from 6 to 12" in warning
    assert f"to {rates[7]:.2e}; the last step had {rates[6]:.2e}" in warning
    caplog.clear()
    train.train(toy_config, whole_run)
    assert not any("learning rate" in text for text in caplog.messages)


def test_a_longer_run_does_not_compile_again(whole_run, toy_config, tmp_path, monkeypatch):
    texts = []
    compile_step = compilation.compile_step

    def record(step, *arguments):
        texts.append(jax.jit(step).lower(*arguments).as_text())
        return compile_step(step, *arguments)

    monkeypatch.setattr(compilation, "compile_step", record)
    train.train(toy_config, tmp_path / "new")
    toy_config.total_steps = 8
    train.train(toy_config, whole_run)
    toy_config.optimizer.update(learning_rate=0.2, warmup_steps=3)
    train.train(toy_config, tmp_path / "other")
    assert texts[0] == texts[1] == texts[2]


def test_a_run_resumes_on_half_the_devices_with_twice_the_microbatches(
    whole_run, toy_config, toy_data, first_device_only, tmp_path, monkeypatch
):
    toy_config.mesh.data = -1
    for devices, accumulate, bad_batch in ((4, 1, 4), (2, 2, None)):
        monkeypatch.setattr(train.mesh_lib.jax, "devices", lambda n=devices: first_device_only[:n])
        toy_config.accumulate = accumulate
        toy_data.before_batch = {bad_batch: kill} if bad_batch else {}
        with pytest.raises(KilledError) if bad_batch else contextlib.nullcontext():
            train.train(toy_config, tmp_path / "moved")
    whole, moved = (untimed(folder) for folder in (whole_run, tmp_path / "moved"))
    np.testing.assert_allclose(moved[2]["loss"], whole[2]["loss"], rtol=1e-5)
    # The noise of the inputs (0.1) is drawn by other keys.
    np.testing.assert_allclose(moved[5]["loss"], whole[5]["loss"], rtol=0.5)
    assert [record["step"] for record in moved] == [1, 2, 3, 4, 5, 6]


def test_other_frozen_parameters_are_refused(whole_run, toy_config, toy_stage):
    toy_config.total_steps = 8
    toy_stage.init_frozen = lambda *_: {"map": np.zeros((FEATURES, 3), np.float32)}
    with pytest.raises(UserError, match="SHA-256 of the frozen map: '"):
        train.train(toy_config, whole_run)


def test_recipe_is_resolved_printed_and_saved(toy_config, tmp_path, capsys):
    toy_config.epochs = 2.0  # of 20 videos, in steps of 8 clips
    toy_config.optimizer.update(base_learning_rate=3.2, warmup_epochs=0.8)
    toy_config.optimizer.update(learning_rate=-1.0, warmup_steps=-1)
    toy_config.total_steps = -1
    assert train.train(toy_config, tmp_path / "run")["step"] == 5
    saved = json.loads((tmp_path / "run/recipe.json").read_text())
    assert (saved["videos"], saved["total_steps"], saved["warmup_steps"]) == (20, 5, 2)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["total_steps"] == 5
    assert config["optimizer"]["learning_rate"] == saved["learning_rate"] == 0.1
    assert "recipe: 5 steps of 8 clips, 2 epochs of 20 videos" in capsys.readouterr().out
    train.train(toy_config, tmp_path / "run")  # the same command finds the run finished
    assert toy_config.total_steps == -1


def test_warm_start_takes_whole_groups(whole_run, toy_config, tmp_path, capsys):
    toy_config.init_from = str(whole_run)
    toy_config.total_steps = 1
    toy_config.optimizer.learning_rate = 0.0
    toy_config.optimizer.min_learning_rate = 0.0
    train.train(toy_config, tmp_path / "next")
    assert f"taken from {whole_run}: encoder (2 arrays, 104 values)" in capsys.readouterr().out
    given, taken = final_params(whole_run), final_params(tmp_path / "next")
    np.testing.assert_array_equal(taken["encoder"]["kernel"], given["encoder"]["kernel"])
    assert np.any(taken["head"]["kernel"] != given["head"]["kernel"])


def test_a_warm_start_with_other_shapes_is_refused_with_a_table(
    whole_run, toy_config, toy_stage, tmp_path
):
    toy_config.init_from = str(whole_run)
    kernel = np.zeros((5, 8), np.float32)
    toy_stage.warm_start = lambda *_: {"encoder": {"kernel": kernel, "extra": kernel}}
    with pytest.raises(UserError) as caught:
        train.train(toy_config, tmp_path / "next")
    for row in (
        "missing: encoder/bias (8,)",
        "unexpected: encoder/extra (5, 8)",
        "wrong shape: encoder/kernel (5, 8), expected (12, 8)",
    ):
        assert row in str(caught.value)


def test_init_from_without_a_checkpoint_is_refused(toy_config, tmp_path):
    toy_config.init_from = str(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint"):
        train.train(toy_config, tmp_path / "run")


def test_an_unknown_stage_is_refused(toy_config, tmp_path):
    toy_config.stage = "stage9"
    with pytest.raises(UserError, match="config.stage='stage9' must be one of stage1, stage2"):
        train.train(toy_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_init_from_is_not_added_to_a_run_that_has_started(whole_run, toy_config, tmp_path):
    toy_config.total_steps = 3
    train.train(toy_config, tmp_path / "next")
    toy_config.init_from, toy_config.total_steps = str(whole_run), 6
    with pytest.raises(UserError, match=f"config.init_from: '' -> '{whole_run}'"):
        train.train(toy_config, tmp_path / "next")


def test_frozen_parameters_of_another_step_are_refused(whole_run, toy_config, tmp_path):
    toy_config.init_from = str(whole_run)
    train.train(toy_config, tmp_path / "next")
    shutil.rmtree(whole_run / "checkpoints/6")
    with pytest.raises(UserError, match="has completed 3 of 6 steps"):
        train.train(toy_config, tmp_path / "next")
    toy_config.init_from_unfinished = True
    with pytest.raises(UserError, match="step of config.init_from: 6 -> 3"):
        train.train(toy_config, tmp_path / "next")


def test_a_resumed_run_keeps_its_source(whole_run, toy_config, tmp_path):
    toy_config.init_from, toy_config.total_steps = str(whole_run), 3
    train.train(toy_config, tmp_path / "next")
    params, other = final_params(whole_run), str(tmp_path / "other.safetensors")
    moved, toy_config.total_steps = whole_run.rename(tmp_path / "moved"), 6
    export.write_export(other, {"encoder": params["encoder"]}, {"config": {}})
    for toy_config.init_from in (str(moved), other):  # the same parameters
        train.train(toy_config, tmp_path / "next")
        toy_config.total_steps += 1
    params["encoder"]["bias"] = params["encoder"]["bias"] + 1
    export.write_export(other, {"encoder": params["encoder"]}, {"config": {}})
    with pytest.raises(UserError, match="SHA-256 of the encoder in config.init_from: "):
        train.train(toy_config, tmp_path / "next")
    toy_config.init_from = ""
    with pytest.raises(UserError, match="encoder in config.init_from: '.*' -> 'absent'"):
        train.train(toy_config, tmp_path / "next")


def test_starting_from_an_export_equals_starting_from_its_run(
    whole_run, toy_config, tmp_path, capsys
):
    toy_config.total_steps = 1
    toy_config.optimizer.update(learning_rate=0.0, min_learning_rate=0.0)
    params = final_params(whole_run)
    toy_config.init_from = str(tmp_path / "export.safetensors")
    export.write_export(toy_config.init_from, params, {"config": {}, "source": {"step": 6}})
    train.train(toy_config, tmp_path / "next")
    out = capsys.readouterr().out
    assert f"taken from {toy_config.init_from}: encoder (2 arrays, 104 values)" in out
    assert f"head is initialized randomly: it is not taken from {toy_config.init_from}" in out
    taken = final_params(tmp_path / "next")
    np.testing.assert_array_equal(taken["encoder"]["kernel"], params["encoder"]["kernel"])


def test_parts_of_a_group_can_start_from_elsewhere(toy_config, toy_stage, tmp_path):
    toy_config.total_steps = 1
    toy_config.optimizer.update(learning_rate=0.0, min_learning_rate=0.0)
    kernel = np.full((12, 8), 3.0, np.float32)
    toy_stage.warm_start = lambda *_: {"encoder/kernel": kernel}
    train.train(toy_config, tmp_path / "run")
    taken = final_params(tmp_path / "run")["encoder"]
    np.testing.assert_array_equal(taken["kernel"], kernel)
    assert not np.any(taken["bias"])
