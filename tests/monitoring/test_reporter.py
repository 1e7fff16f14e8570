import math

import jax
import jax.numpy as jnp
import pytest

from configs import stage1
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.monitoring import metrics_file, throughput
from invnext_jax.monitoring import reporter as reporter_lib
from invnext_jax.training import mesh as mesh_lib

COUNTS = {"dropped_videos": 0}


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(1, 50, True), (2, 50, False), (50, 50, True), (100, 50, True), (1, 0, False)],
)
def test_first_step_and_multiples_are_due(step, every, due):
    assert reporter_lib.is_due(step, every) == due


@pytest.fixture
def reporter(toy_config, tmp_path):
    toy_config.log.every_steps = 4
    toy_config.total_steps = 6
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    reporter = reporter_lib.Reporter(toy_config, tmp_path, 0, mesh)
    reporter.start()
    yield reporter
    reporter.close()


def step_metrics(loss=1.0, skipped_in_row=0):
    return {
        "loss": jnp.float32(loss),
        "learning_rate": jnp.float32(0.1),
        "skipped": jnp.int32(skipped_in_row),
        "skipped_in_row": jnp.int32(skipped_in_row),
    }


def test_step_is_reported_once_the_next_is_dispatched(reporter, tmp_path):
    reporter.add_step(1, step_metrics(), {}, COUNTS)
    assert metrics_file.read_metrics(tmp_path) == []
    reporter.add_step(2, step_metrics(), {}, COUNTS)
    assert [record["step"] for record in metrics_file.read_metrics(tmp_path)] == [1]


def test_speed_excludes_pauses_and_steps_are_reported_before_them(reporter, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    reporter.start()

    def run_step(step, seconds):
        now[0] += seconds
        reporter.add_step(step, step_metrics(), {"diagnostic": 1.0}, COUNTS)

    run_step(1, 2.0)
    now[0] += 2.0
    with reporter.pause(()):
        now[0] += 100.0
        [first] = metrics_file.read_metrics(tmp_path)
    run_step(2, 1.0)
    reporter.flush()
    second = metrics_file.read_metrics(tmp_path)[1]
    batch = first["clips_per_second"] * 4.0
    assert batch == pytest.approx(second["clips_per_second"] * 1.0)
    assert second["step_seconds"] == pytest.approx(3.0)


@pytest.mark.parametrize(("metric", "score"), [("eval/knn_shape", 0.5), ("loss", 2.0)])
def test_the_score_of_a_checkpoint_excludes_the_initial_encoder(
    toy_config, tmp_path, metric, score
):
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    reporter = reporter_lib.Reporter(
        toy_config, tmp_path, 0, mesh, metric, rare_metrics=["eval/knn_shape"]
    )
    reporter.start(["loss"])
    for step, loss, accuracy in ((1, 3.0, 0.1), (2, 1.0, 0.5)):
        reporter.add_step(
            step, step_metrics(loss), {"eval/knn_shape": jnp.float32(accuracy)}, COUNTS
        )
    reporter.flush()
    assert reporter.pop_score() == score
    assert reporter.pop_score() is None
    reporter.close()


def test_due_steps_steps_with_diagnostics_and_the_last_step_are_logged(reporter, tmp_path):
    for step in range(1, 7):
        reporter.add_step(
            step, step_metrics(), {"gap": jnp.float32(2.0)} if step == 3 else {}, COUNTS
        )
    reporter.flush()
    records = metrics_file.read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 3, 4, 6]
    assert records[1]["gap"] == 2.0


def test_too_many_skipped_steps_raise_between_logged_steps(reporter, tmp_path):
    reporter.add_step(1, step_metrics(), {}, COUNTS)
    reporter.add_step(2, step_metrics(math.nan, 3), {}, COUNTS)
    with pytest.raises(NonFiniteError, match="3 consecutive steps, up to step 2"):
        reporter.flush()
    assert metrics_file.read_metrics(tmp_path)[-1]["loss"] is None


@pytest.mark.parametrize("field", ["every_steps", "watchdog_minutes", "max_nonfinite_steps"])
def test_log_option_out_of_range_is_an_error(field):
    config = stage1.get_config("tiny")
    reporter_lib.check_config(config)
    config.log[field] = -1
    with pytest.raises(UserError, match=rf"config.log.{field}=-1(\.0)? must be at least"):
        reporter_lib.check_config(config)


def test_a_collapse_ratio_that_always_warns_is_an_error():
    config = stage1.get_config("tiny")
    config.log.collapse_ratio = 1.0
    with pytest.raises(UserError, match="collapse_ratio=1.0 must be below 1"):
        reporter_lib.check_config(config)


def test_long_waits_for_data_are_explained_once(toy_config, tmp_path, monkeypatch, capsys):
    toy_config.log.every_steps, toy_config.total_steps = 1, 20
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    waits = iter([0.9, 0.9, 0.1, 0.9, 0.99, 0.95, *[0.9] * 10])
    reporter = reporter_lib.Reporter(
        toy_config, tmp_path, 0, mesh, describe_wait=lambda: "Decoding is the limit"
    )
    monkeypatch.setattr(
        reporter._timer,
        "measure",
        lambda _: {"clips_per_second": 1.0, "data_wait": next(waits)},
    )
    reporter.start()
    for step in range(1, 13):
        reporter.add_step(step, step_metrics(), {}, COUNTS)
    reporter.flush()
    reporter.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if "limit" in line]
    assert lines == [
        "data 95 %: for this share of the time, the devices had no batch to work on; "
        "Decoding is the limit"
    ]
