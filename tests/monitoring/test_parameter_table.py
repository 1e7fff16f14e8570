import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.monitoring import parameter_table


@pytest.fixture
def params(toy_mesh):
    sharding = NamedSharding(toy_mesh, P("fsdp"))
    kernel = jax.device_put(jnp.zeros((8, 1000)), sharding)
    return {"encoder": {"kernel": kernel, "bias": np.zeros(1000, np.float32)}, "pool": kernel}


def test_log_has_the_size_of_each_group_and_the_total(params):
    lines = parameter_table.format_group_sizes(params, {"teacher": np.zeros((500, 1000))})
    assert lines == [
        "trained parameters: encoder 0.01 M, pool 0.01 M; 0.02 M in all",
        "frozen parameters: teacher 0.50 M; 0.50 M in all",
    ]
    assert len(parameter_table.format_group_sizes(params, {})) == 1


def test_groups_that_are_not_trained_count_as_frozen(params, tmp_path, capsys):
    parameter_table.report_parameters(tmp_path, params, {}, untrained=("pool",))
    assert capsys.readouterr().out.splitlines() == [
        "trained parameters: encoder 0.01 M; 0.01 M in all",
        "frozen parameters: pool 0.01 M; 0.01 M in all",
    ]
    trained, frozen = (tmp_path / "parameters.txt").read_text().split("Frozen parameters")
    assert "pool" in frozen and "pool" not in trained


def test_file_lists_every_array_with_shape_dtype_and_sharding(params, tmp_path):
    parameter_table.report_parameters(tmp_path, params, {"map": np.zeros((3, 2), np.float32)})
    text = (tmp_path / "parameters.txt").read_text()
    trained, frozen = text.split("Frozen parameters")
    (row,) = [line for line in trained.splitlines() if "encoder/kernel" in line]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("encoder/kernel", "(8, 1000)", "float32", "8,000", "('fsdp',)")
    ]
    assert "Total: 17,000" in trained
    assert "map" in frozen


def test_file_that_cannot_be_written_is_a_warning(params, tmp_path, caplog):
    (tmp_path / "file").touch()
    parameter_table.report_parameters(tmp_path / "file", params, {})
    assert "parameters.txt cannot be written" in caplog.text
