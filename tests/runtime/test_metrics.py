import errno
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.runtime import mesh as mesh_lib
from invnext_jax.runtime import metrics


def write(workdir, step, records):
    writer = metrics.MetricWriter(workdir, step)
    for record in records:
        writer.write(record)
    writer.close()


def test_what_is_not_finite_is_null_never_0(tmp_path):
    write(
        tmp_path, 0, [{"step": 1, "loss": np.float32(np.nan), "grad_norm": math.inf, "zero": 0.0}]
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "grad_norm": None, "zero": 0.0}


def test_a_resumed_run_cuts_what_lies_beyond_its_step(tmp_path):
    write(tmp_path, 0, [{"step": n, "loss": n / 2} for n in (1, 2, 3)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    write(tmp_path, 2, [{"step": 3, "loss": 9.0}])
    assert [(r["step"], r["loss"]) for r in metrics.read_metrics(tmp_path)] == [
        (1, 0.5),
        (2, 1.0),
        (3, 9.0),
    ]


def test_a_line_cut_short_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert metrics.read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["\0\0\0", "garbage", "7", "{}"])
def test_a_line_of_garbage_is_told_in_a_sentence(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is no record"):
        metrics.MetricWriter(tmp_path, 3)


def test_a_disk_that_is_full_at_the_start_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "EventsWriter", full)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written: No space left"):
        metrics.MetricWriter(tmp_path, 0)


def test_records_wait_while_the_event_file_cannot_be_opened(tmp_path, monkeypatch):
    writer = metrics.MetricWriter(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "EventsWriter", full)
        for step in (1, 2):
            writer.write({"step": step})
    writer.retry()
    assert metrics.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    writer.close()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_file_has_no_records(tmp_path):
    assert metrics.read_metrics(tmp_path) == []


def test_tensorboard_sees_each_scalar_once_after_a_restart(tmp_path):
    write(tmp_path, 0, [{"step": n, "loss": float(n)} for n in (1, 2, 3)])
    write(tmp_path, 1, [{"step": n, "loss": 10.0 * n} for n in (2, 3)])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 20), (3, 30)]


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(1, 50, True), (2, 50, False), (50, 50, True), (100, 50, True), (1, 0, False)],
)
def test_the_first_step_and_multiples_are_due(step, every, due):
    assert metrics.is_due(step, every) == due


@pytest.fixture
def reporter(toy_config, tmp_path):
    toy_config.log.every_steps = 4
    toy_config.total_steps = 6
    mesh = mesh_lib.make_mesh(toy_config.mesh, jax.devices()[:1])
    reporter = metrics.Reporter(toy_config, tmp_path, 0, mesh)
    reporter.start()
    yield reporter
    reporter.close()


def measured(loss=1.0, skipped_in_row=0):
    return {
        "loss": jnp.float32(loss),
        "learning_rate": jnp.float32(0.1),
        "skipped": jnp.int32(skipped_in_row),
        "skipped_in_row": jnp.int32(skipped_in_row),
    }


def test_a_step_is_reported_while_the_next_is_under_way(reporter, tmp_path):
    reporter.push(1, measured(), {}, 0)
    assert metrics.read_metrics(tmp_path) == []
    reporter.push(2, measured(), {}, 0)
    assert [record["step"] for record in metrics.read_metrics(tmp_path)] == [1]


def test_logged_are_the_due_steps_those_with_diagnostics_and_the_last(reporter, tmp_path):
    for step in range(1, 7):
        reporter.push(step, measured(), {"gap": jnp.float32(2.0)} if step == 3 else {}, 0)
    reporter.drain()
    records = metrics.read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 3, 4, 6]
    assert records[1]["gap"] == 2.0


def test_too_long_a_row_is_found_between_logged_steps(reporter, tmp_path):
    reporter.push(1, measured(), {}, 0)
    reporter.push(2, measured(math.nan, 3), {}, 0)
    with pytest.raises(NonFiniteError, match="3 steps in a row, the last of them step 2"):
        reporter.drain()
    assert metrics.read_metrics(tmp_path)[-1]["loss"] is None
