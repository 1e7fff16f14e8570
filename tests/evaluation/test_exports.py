"""The export command proves itself, and never destroys what was there."""

import json

import numpy as np
import pytest

from configs import stage1
from invnext_jax.errors import UserError
from invnext_jax.evaluation import exports, features, runs
from invnext_jax.weights import export


@pytest.fixture
def run(monkeypatch):
    """A Stage 1 run, as the checkpoint room would give it."""
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=2)
    params = {"encoder": features.init_encoder(config, 0), "pool": {"query": np.ones((1, 4), "f4")}}
    real = features.load_params

    def load(path):
        return (params, config) if str(path) == "runs/s1" else real(path)

    monkeypatch.setattr(features, "load_params", load)
    record = {"step": 7, "git": "abc", "versions": {"jax": "0"}}
    monkeypatch.setattr(runs, "read_record", lambda _: record)
    return params


def test_export_writes_both_files_and_nothing_else(tmp_path, run):
    out = tmp_path / "new" / "encoder.safetensors"
    said = exports.export_run("runs/s1", out)
    assert "are equal" in said
    assert sorted(p.name for p in out.parent.iterdir()) == ["encoder.json", "encoder.safetensors"]
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["parts"] == ["encoder"]
    assert about["source"] == {"run": "s1", "step": 7, "git": "abc", "versions": {"jax": "0"}}
    assert "data" not in about["config"]  # paths of this machine stay here
    assert export.holds(out, {"encoder": run["encoder"]})


def test_more_parts_come_with_their_configs(tmp_path, run):
    out = tmp_path / "all.safetensors"
    exports.export_run("runs/s1", out, parts=("encoder", "pool"))
    assert json.loads(out.with_suffix(".json").read_text())["parts"] == ["encoder", "pool"]
    with pytest.raises(UserError, match="runs/s1 holds no decoder"):
        exports.export_run("runs/s1", out, parts=("encoder", "decoder"))


def test_a_second_export_of_the_same_weights_writes_nothing(tmp_path, run):
    out = tmp_path / "encoder.safetensors"
    exports.export_run("runs/s1", out)
    before = out.stat().st_mtime_ns
    assert "already" in exports.export_run("runs/s1", out)
    assert out.stat().st_mtime_ns == before


def test_other_weights_are_replaced_only_when_told(tmp_path, run):
    out = tmp_path / "encoder.safetensors"
    exports.export_run("runs/s1", out)
    old = out.read_bytes()
    run["encoder"]["class_token"] = run["encoder"]["class_token"] + 1
    with pytest.raises(UserError, match="--overwrite"):
        exports.export_run("runs/s1", out)
    assert out.read_bytes() == old
    exports.export_run("runs/s1", out, overwrite=True)
    assert export.holds(out, {"encoder": run["encoder"]})


def test_other_features_are_refused_and_old_files_stay(tmp_path, run, monkeypatch):
    out = tmp_path / "encoder.safetensors"
    exports.export_run("runs/s1", out)
    old = out.read_bytes()
    real = features.load_encoder

    def spoiled(path):
        encoder, params, config = real(path)
        return features.LoadedEncoder(
            encoder, {**params, "class_token": params["class_token"] + 1}, config
        )

    monkeypatch.setattr(features, "load_encoder", spoiled)
    with pytest.raises(UserError, match="gives other features"):
        exports.export_run("runs/s1", out, overwrite=True)
    assert out.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2
