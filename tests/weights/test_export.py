"""Exports: bitwise round trip, and errors for files that cannot be read."""

import json

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.weights import export


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "encoder": {
            "blocks": {"attn": {"qkv": {"kernel": rng.normal(size=(2, 4, 12)).astype("f4")}}},
            "class_token": rng.normal(size=(4, 8)).astype("f4"),
        }
    }


def test_round_trip_is_bitwise(tmp_path, params):
    path = tmp_path / "sub" / "encoder.safetensors"
    export.write_export(path, params, {"stage": "stage2"})
    found, about = export.read_export(path)
    np.testing.assert_array_equal(
        found["encoder"]["blocks"]["attn"]["qkv"]["kernel"],
        params["encoder"]["blocks"]["attn"]["qkv"]["kernel"],
    )
    assert about == {"format": 1, "parts": ["encoder"], "stage": "stage2"}
    assert export.contains_tensors(path, params)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "encoder.json",
        "encoder.safetensors",
    ]


def test_transposed_views_are_not_scrambled(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    export.write_export(tmp_path / "a.safetensors", {"encoder": {"kernel": matrix}}, {})
    found, _ = export.read_export(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found["encoder"]["kernel"], matrix)


def test_bfloat16_is_widened_to_float32():
    import ml_dtypes

    tensors = export.lazy_tensors({"a": {"b": np.ones(3, ml_dtypes.bfloat16)}})
    assert tensors["a/b"].read().dtype == np.float32


def test_contains_tensors_detects_a_changed_bit_and_a_missing_part(tmp_path, params):
    path = tmp_path / "encoder.safetensors"
    export.write_export(path, params, {})
    assert not export.contains_tensors(path, {"encoder": {**params["encoder"], "more": np.ones(1)}})
    params["encoder"]["class_token"] = -params["encoder"]["class_token"]
    assert not export.contains_tensors(path, params)


def test_unreadable_exports_are_refused(tmp_path, params):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(UserError, match="must end in .safetensors"):
        export.write_export(tmp_path / "encoder.npz", params, {})
    with pytest.raises(UserError, match="there is no file"):
        export.read_export(path)
    export.write_export(path, params, {})
    path.with_suffix(".json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        export.read_export(path)
    export.write_export(path, params, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        export.read_export(path)
