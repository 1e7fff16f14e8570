import math

import jax
import jax.numpy as jnp
import pytest

from invnext_jax.errors import NonFiniteError
from invnext_jax.monitoring import metrics_file
from invnext_jax.monitoring import reporter as reporter_lib
from invnext_jax.training import mesh as mesh_lib


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(1, 50, True), (2, 50, False), (50, 50, True), (100, 50, True), (1, 0, False)],
)
def test_the_first_step_and_multiples_are_due(step, every, due):
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


def measured(loss=1.0, skipped_in_row=0):
    return {
        "loss": jnp.float32(loss),
        "learning_rate": jnp.float32(0.1),
        "skipped": jnp.int32(skipped_in_row),
        "skipped_in_row": jnp.int32(skipped_in_row),
    }


def test_a_step_is_reported_while_the_next_is_under_way(reporter, tmp_path):
    reporter.push(1, measured(), {}, 0)
    assert metrics_file.read_metrics(tmp_path) == []
    reporter.push(2, measured(), {}, 0)
    assert [record["step"] for record in metrics_file.read_metrics(tmp_path)] == [1]


def test_logged_are_the_due_steps_those_with_diagnostics_and_the_last(reporter, tmp_path):
    for step in range(1, 7):
        reporter.push(step, measured(), {"gap": jnp.float32(2.0)} if step == 3 else {}, 0)
    reporter.drain()
    records = metrics_file.read_metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 3, 4, 6]
    assert records[1]["gap"] == 2.0


def test_too_long_a_row_is_found_between_logged_steps(reporter, tmp_path):
    reporter.push(1, measured(), {}, 0)
    reporter.push(2, measured(math.nan, 3), {}, 0)
    with pytest.raises(NonFiniteError, match="3 steps in a row, the last of them step 2"):
        reporter.drain()
    assert metrics_file.read_metrics(tmp_path)[-1]["loss"] is None
