"""A small data set and three checkpoints, which the tests damage."""

import shutil

import pytest
import toy_evaluation


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    toy_evaluation.use_devices(monkeypatch, 1)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A folder with a data set in `data` and three checkpoints."""
    folder = tmp_path_factory.mktemp("original")
    toy_evaluation.write_data(folder / "data", train=8, val=8)
    toy_evaluation.write_checkpoint(folder / "encoder.safetensors")
    toy_evaluation.write_stage2(folder / "stage2.safetensors")
    toy_evaluation.write_checkpoint(folder / "head.safetensors", parts=["predictor"])
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")
