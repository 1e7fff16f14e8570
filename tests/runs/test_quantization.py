"""The format of `config.quantize_frozen="auto"` is saved with the run and kept on resume."""

import jax
import ml_collections
import pytest

from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.models import dot_general
from invnext_jax.stages import image_teacher


def saved_format(workdir):
    return reader.read_config(workdir)["quantize_frozen"]


def test_a_run_that_is_resumed_on_another_device_keeps_its_format(
    toy_config, capsys, one_device, tmp_path, monkeypatch
):
    toy_config.quantize_frozen = "auto"
    toy_config.total_steps = 3
    with monkeypatch.context() as patch:
        patch.setattr(dot_general, "select_format", lambda _: "int8")
        train.train(toy_config, tmp_path / "run")
    assert saved_format(tmp_path / "run") == "int8"
    toy_config.total_steps = 6
    train.train(toy_config, tmp_path / "run")  # a CPU has no format
    assert saved_format(tmp_path / "run") == "int8"
    assert reader.restore_run(tmp_path / "run").config.quantize_frozen == "int8"
    assert capsys.readouterr().out.count("8-bit products of the frozen networks: int8\n") == 2


@pytest.mark.parametrize("name", ["", "int8", "float8"])
def test_a_format_that_is_set_is_not_replaced(name):
    config = ml_collections.FrozenConfigDict({"quantize_frozen": name})
    saved = {"quantize_frozen": "int8"}
    assert image_teacher.resolve_quantization(config, saved, None).quantize_frozen == name


@pytest.mark.parametrize(
    ("saved", "reason"),
    [({"total_steps": 6}, "this run started without them"), ({}, "cpu has no fast ones")],
)
def test_auto_without_a_format_is_logged(saved, reason, caplog, monkeypatch):
    if saved:  # of a version without the option, on a device with a format
        monkeypatch.setattr(dot_general, "select_format", lambda _: "float8")
    config = ml_collections.FrozenConfigDict({"quantize_frozen": "auto"})
    with caplog.at_level("WARNING"):
        resolved = image_teacher.resolve_quantization(config, saved, jax.devices()[0])
    assert resolved.quantize_frozen == ""
    assert f"config.quantize_frozen='auto' uses no 8-bit products: {reason}" in caplog.text
