"""The format of `config.quantize_frozen="auto"` is saved with the run and kept on resume."""

import ml_collections
import pytest

from configs import stage1
from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.models import dot_general
from invnext_jax.stages import image_teacher


def saved_format(workdir):
    return reader.read_config(workdir)["quantize_frozen"]


@pytest.fixture
def messages(monkeypatch):
    found = []

    def keep(text, *arguments):
        found.append(text % arguments)

    monkeypatch.setattr(image_teacher.logging, "info", keep)
    return found


def test_a_run_that_is_resumed_on_another_device_keeps_its_format(
    toy_config, messages, one_device, tmp_path, monkeypatch
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
    assert [text.partition("networks in ")[2] for text in messages] == [
        "int8, for cpu",
        "int8, as in the checkpoint",
    ]


@pytest.mark.parametrize("name", ["", "int8", "float8"])
def test_a_format_that_is_set_is_not_replaced(name):
    config = ml_collections.FrozenConfigDict({"quantize_frozen": name})
    saved = {"quantize_frozen": "int8"}
    assert image_teacher.resolve_quantization(config, saved, None).quantize_frozen == name


def test_older_checkpoints_are_continued_without_a_format(messages, monkeypatch):
    monkeypatch.setattr(dot_general, "select_format", lambda _: "float8")
    config = stage1.get_config("tiny")
    config.quantize_frozen = "auto"
    resolved = image_teacher.resolve_quantization(
        ml_collections.FrozenConfigDict(config), {"total_steps": 6}, None
    )
    assert resolved.quantize_frozen == ""
    assert messages == ['config.quantize_frozen="auto": no 8-bit products, as in the checkpoint']
