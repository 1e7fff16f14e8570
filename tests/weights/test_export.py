"""Exports: bitwise round trip, and errors for files that cannot be read."""

import json
import struct

import numpy as np
import pytest

from invnext_jax import regular_file
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.weights import export, files, import_weights, match


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
    found, about = export.open_export(path)
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


def test_the_description_of_another_export_is_refused(tmp_path, params):
    for name, heads in (("a", 2), ("b", 4)):
        about = {"config": {"encoder": {"heads": heads}}}
        export.write_export(tmp_path / f"{name}.safetensors", params, about)
    export.open_export(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(UserError, match="a.json does not describe the weights in .*a.safetensors"):
        export.open_export(tmp_path / "a.safetensors")


def test_transposed_views_are_not_scrambled(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    export.write_export(tmp_path / "a.safetensors", {"encoder": {"kernel": matrix}}, {})
    found, _ = export.open_export(tmp_path / "a.safetensors")
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
        export.open_export(path)
    export.write_export(path, params, {})
    path.with_suffix(".json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        export.open_export(path)
    export.write_export(path, params, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        export.open_export(path)


def write_sparse_file(path, shapes):
    """Writes a .safetensors file with bfloat16 tensors that occupy no space on the disk."""
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)


@pytest.fixture
def no_reading(monkeypatch):
    """Makes the test fail if a tensor is read, and accepts sparse files."""

    def fail(path, opened, name):
        del opened
        return lambda: pytest.fail(f"the tensor {name} of {path} was read")

    monkeypatch.setattr(files, "_reader", fail)
    monkeypatch.setattr(regular_file, "describe_sparse", lambda _: "")


def test_tensors_of_another_size_are_refused_by_their_header(tmp_path, no_reading):
    write_sparse_file(tmp_path / "a.safetensors", {"teacher/w": [2**15, 2**15], "teacher/b": [3]})
    (tmp_path / "a.json").write_text(json.dumps({"format": 1}))
    parts, _ = export.open_export(tmp_path / "a.safetensors")
    expected = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"w: found \(32768, 32768\), expected \(2, 2\)"):
        match.match_tree(parts["teacher"], expected, "the teacher")


@pytest.mark.parametrize("part", ["encoder/w", "decoder/w"])
def test_surplus_tensors_are_refused_by_their_header(part, tiny_config, tmp_path, no_reading):
    config = tiny_config("stage1")
    expected = import_weights.part_shapes(config, ["encoder"])
    shapes = {name: list(shape) for name, shape in expected.items()}
    write_sparse_file(tmp_path / "a.safetensors", shapes | {part: [2**15, 2**15]})
    about = {"format": 1, "config": run_metadata.config_to_json(config)}
    (tmp_path / "a.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"surplus  {part}: found"):
        pretrained.load_encoder(tmp_path / "a.safetensors")


def test_tensors_that_do_not_fit_the_run_are_not_read(tmp_path, no_reading):
    write_sparse_file(tmp_path / "a.safetensors", {"encoder/w": [2**15, 2**15], "other/w": [2]})
    (tmp_path / "a.json").write_text(json.dumps({"format": 1}))
    parts, _ = export.open_export(tmp_path / "a.safetensors")
    found = match.read_matching(parts, {"encoder/w": (2, 2)})
    assert found["encoder"]["w"].shape == (2**15, 2**15)


def test_headers_with_too_many_bytes_or_tensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    text = b"{}".ljust(files.MAX_HEADER_BYTES + 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match="has a header of 16777224 bytes, more than 16777216"):
        files.open_checkpoint(path)
    write_sparse_file(path, {f"t{i}": [1] for i in range(files.MAX_TENSORS + 1)})
    with pytest.raises(UserError, match="has 8193 tensors, but at most 8192 are read"):
        files.open_checkpoint(path)
