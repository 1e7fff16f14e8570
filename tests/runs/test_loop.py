"""Training loop, checkpoints and signals together, on a toy stage."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import FAST_TO_COMPILE
from toy_run import TIMED, KilledError, assert_equal_runs, final_params, kill, untimed

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.data import pipeline
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.monitoring import metrics_file, reporter

TOY_RUN = pathlib.Path(__file__).parents[1] / "support/toy_run.py"
pytestmark = pytest.mark.usefixtures("first_device_only")
MAKE_DATASET = pipeline.make_train_dataset  # saved before a fixture replaces it


def test_every_step_is_logged_with_losses_rates_and_diagnostics(whole_run):
    records = metrics_file.read_metrics(whole_run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    wanted = {"loss", "loss/distance", "grad_norm", "learning_rate", "nonfinite", "skipped"}
    assert all(wanted | TIMED <= record.keys() for record in records)
    assert [r["step"] for r in records if "encoder_norm" in r] == [1, 2, 4, 6]


def test_the_resolved_config_is_written_to_the_workdir(whole_run, toy_config):
    saved = json.loads((whole_run / "config.json").read_text())
    assert saved["optimizer"]["learning_rate"] == 0.1
    assert saved["encoder"] == toy_config.encoder.to_dict()


def test_a_killed_run_resumes_bitwise(whole_run, toy_config, toy_data, tmp_path):
    toy_data.before_batch[6] = kill
    with pytest.raises(KilledError):
        train.train(toy_config, tmp_path / "killed")
    assert len(untimed(tmp_path / "killed")) >= 4  # later than the checkpoint of step 3
    toy_data.before_batch.clear()
    train.train(toy_config, tmp_path / "killed")
    assert_equal_runs(whole_run, tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_resumes(
    whole_run, toy_config, toy_data, tmp_path, capsys, number
):
    toy_data.before_batch[5] = lambda: os.kill(os.getpid(), number)
    train.train(toy_config, tmp_path / "stopped")
    assert (tmp_path / "stopped/checkpoints/4").is_dir()  # the run did not wait for batch 5
    said = capsys.readouterr().out
    assert f"{number.name}: stopped after step 4 of 6" in said
    assert "the same command resumes the run" in said
    toy_data.before_batch.clear()
    train.train(toy_config, tmp_path / "stopped")
    assert "resumes after step 4" in capsys.readouterr().out
    assert_equal_runs(whole_run, tmp_path / "stopped")


def test_a_signal_before_the_first_step_saves_nothing(toy_config, toy_data, tmp_path, capsys):
    toy_data.before_batch[1] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert train.train(toy_config, tmp_path / "run") == {}
    assert "SIGTERM: stopped before the first step" in capsys.readouterr().out
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_a_finished_run_only_prints_a_message(whole_run, toy_config, capsys):
    before = (whole_run / "metrics.jsonl").read_bytes()
    record = train.train(toy_config, whole_run)
    assert record["step"] == 6
    assert "is finished: 6 steps are done" in capsys.readouterr().out
    assert (whole_run / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_costs_steps_but_no_result(whole_run, toy_config, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(whole_run, damaged)
    os.remove(damaged / "checkpoints/6/state/manifest.ocdbt")
    train.train(toy_config, damaged)
    assert_equal_runs(whole_run, damaged)
    assert (damaged / "checkpoints/damaged-6").is_dir()


def test_a_nonfinite_step_is_skipped_counted_and_logged_as_null(toy_config, toy_data, tmp_path):
    toy_data.bad_batches = (3, 4)
    train.train(toy_config, tmp_path / "run")
    records = metrics_file.read_metrics(tmp_path / "run")
    assert [record["nonfinite"] for record in records] == [0, 0, 1, 1, 0, 0]
    assert [record["skipped"] for record in records] == [0, 0, 1, 2, 2, 2]
    assert [record["loss"] is None for record in records] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    rates = [record["learning_rate"] for record in records]
    assert rates[2] == rates[3] == rates[4]  # the schedule counts updates


def test_too_many_nonfinite_steps_in_a_row_end_the_run(toy_config, toy_data, tmp_path):
    toy_data.bad_batches = (2, 3, 4, 5)
    toy_config.log.every_steps = 100
    with pytest.raises(NonFiniteError, match="in 3 consecutive steps, up to step 4"):
        train.train(toy_config, tmp_path / "run")
    # The abort is detected while step 5 is running, so step 5 is also saved and logged.
    last = metrics_file.read_metrics(tmp_path / "run")[-1]
    assert (last["step"], last["loss"], last["skipped_in_row"]) == (5, None, 4)


def test_a_run_whose_steps_were_all_skipped_is_an_error(toy_config, toy_data, tmp_path):
    toy_config.total_steps = 2
    toy_data.bad_batches = (0, 1, 2, 3)
    for _ in range(2):  # the second time, the run is already finished
        with pytest.raises(NonFiniteError, match="was not finite in all 2 steps"):
            train.train(toy_config, tmp_path / "run")


def test_nothing_is_compiled_after_the_first_step(toy_config, tmp_path, monkeypatch):
    compiled, pushed = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    push = reporter.Reporter.add_step

    def count(self, *arguments):
        push(self, *arguments)
        pushed.append(len(compiled))

    monkeypatch.setattr(reporter.Reporter, "add_step", count)
    train.train(toy_config, tmp_path / "run")
    assert len(pushed) == 6
    assert pushed[0] > 0
    assert len(compiled) == pushed[0]


STOPPED_RUN = """
import importlib.util, os, signal, sys
from absl import flags
flags.FLAGS.mark_as_parsed()
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
from invnext_jax import errors, train
from invnext_jax.stages import registry
from invnext_jax.training import compilation
compilation.enable_cache()
registry.STAGES["toy"] = toy.make_toy_stage()
train.pipeline.make_train_dataset = data = toy.ToyData()
data.before_batch[4] = lambda: os.kill(os.getpid(), signal.SIGTERM)
with errors.exit_on_user_error():
    train.train(toy.make_toy_config(sys.argv[2]), sys.argv[3])
"""


def test_a_signal_ends_the_process_with_code_0(whole_run, toy_config, toy_data, tmp_path):
    arguments = [TOY_RUN, toy_config.data.manifest, tmp_path / "stopped"]
    environment = {
        **os.environ,
        "XLA_FLAGS": FAST_TO_COMPILE,
        "JAX_PLATFORMS": "cpu",
        "HOME": str(tmp_path),
    }
    del environment["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_RUN, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "SIGTERM: stopped after step 3 of 6" in done.stdout
    assert list((tmp_path / ".cache/invnext_jax").iterdir())
    train.train(toy_config, tmp_path / "stopped")
    assert [record["step"] for record in untimed(tmp_path / "stopped")] == [1, 2, 3, 4, 5, 6]
    # The other process compiled with other optimizations.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        final_params(whole_run),
        final_params(tmp_path / "stopped"),
    )


def test_real_videos_some_of_them_bad_and_another_number_of_workers(
    toy_config, world, tmp_path, monkeypatch, capsys
):
    rows = world.read_text().replace("train/", f"{world.parent}/train/") + "missing.mp4,a,0,0,0\n"
    (tmp_path / "videos.csv").write_text(rows)
    monkeypatch.setattr(train.pipeline, "make_train_dataset", MAKE_DATASET)
    toy_config.encoder.patch = 1
    toy_config.data.update(manifest=str(tmp_path / "videos.csv"), frames=1, size=2, workers=1)
    train.train(toy_config, tmp_path / "whole")
    assert "data: 48 clips, " in capsys.readouterr().out

    push = reporter.Reporter.add_step
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(
            reporter.Reporter,
            "add_step",
            lambda self, step, *rest: kill() if step == 5 else push(self, step, *rest),
        )
        train.train(toy_config, tmp_path / "killed")
    toy_config.data.workers = 2
    train.train(toy_config, tmp_path / "killed")
    jax.tree.map(
        np.testing.assert_array_equal,
        final_params(tmp_path / "whole"),
        final_params(tmp_path / "killed"),
    )
    for name in ("whole", "killed"):
        listed = (tmp_path / name / "quarantine.csv").read_text()
        reason = "missing: No such file or directory"
        assert listed == f"path,reason\n{tmp_path}/missing.mp4,{reason}\n"


def test_a_window_of_steps_is_traced(toy_config, tmp_path, capsys):
    toy_config.profile_steps = (2, 4)
    train.train(toy_config, tmp_path / "run")
    assert "trace of steps up to 4: tensorboard --logdir=" in capsys.readouterr().out
    traces = list((tmp_path / "run/profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 0


@pytest.mark.parametrize("window", [(4, 2), (3,), (-1, 2)])
def test_an_invalid_profile_window_is_refused(toy_config, tmp_path, window):
    toy_config.profile_steps = window
    with pytest.raises(UserError, match="must be two increasing"):
        train.train(toy_config, tmp_path / "run")


def test_moving_average_and_microbatches_resume_bitwise(toy_config, toy_data, tmp_path):
    toy_config.accumulate = 2
    toy_config.ema.decay = 0.9
    train.train(toy_config, tmp_path / "whole")
    toy_data.before_batch[6] = kill
    with pytest.raises(KilledError):
        train.train(toy_config, tmp_path / "killed")
    toy_data.before_batch.clear()
    train.train(toy_config, tmp_path / "killed")
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    averages = [
        reader.restore_run(tmp_path / name, ema=True).params for name in ("whole", "killed")
    ]
    jax.tree.map(np.testing.assert_array_equal, *averages)
    final = final_params(tmp_path / "whole")["encoder"]["kernel"]
    assert np.all(averages[0]["encoder"]["kernel"] != final)


def test_reading_a_missing_moving_average_is_a_user_error(whole_run):
    with pytest.raises(UserError, match="keeps no moving average"):
        reader.restore_run(whole_run, ema=True)


def test_parts_that_do_not_divide_the_batch_are_refused(toy_config, tmp_path):
    toy_config.accumulate = 3
    with pytest.raises(
        UserError, match="batch_size=8 must be divisible by config.accumulate=3 times"
    ):
        train.train(toy_config, tmp_path / "run")


def test_a_step_is_read_only_after_the_next_is_dispatched(toy_config, tmp_path, monkeypatch):
    toy_config.checkpoint.every_steps = 100  # a save reads all pending steps
    order, push, report = [], reporter.Reporter.add_step, reporter.Reporter._report

    def note_push(self, step, *rest):
        order.append(("dispatched", step))
        push(self, step, *rest)

    def note_report(self, step, *rest):
        order.append(("looked at", step))
        report(self, step, *rest)

    monkeypatch.setattr(reporter.Reporter, "add_step", note_push)
    monkeypatch.setattr(reporter.Reporter, "_report", note_report)
    train.train(toy_config, tmp_path / "run")
    for step in range(1, 6):
        assert order.index(("looked at", step)) > order.index(("dispatched", step + 1))
    assert order[-1] == ("looked at", 6)
