"""Safetensors checkpoints: lazy reading, errors for invalid ones, and writing."""

import json
import os
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as st

from invnext_jax.errors import UserError
from invnext_jax.weights import files

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.array([1.5, -2.0], np.float32),
}


def read(source):
    tensors, _ = files.open_checkpoint(source)
    return {name: tensor.read() for name, tensor in tensors.items()}


def sharded(folder, arrays=ARRAYS):
    names = {}
    for i, (name, array) in enumerate(arrays.items()):
        shard = f"model-{i + 1:05}-of-{len(arrays):05}.safetensors"
        st.save_file({name: array}, folder / shard)
        names[name] = shard
    (folder / files.INDEX_FILE).write_text(json.dumps({"weight_map": names}))


def add_large_tensor(path, elements):
    """Appends a tensor to the header of a file, and a hole of its size to the file."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    start = max(fields["data_offsets"][1] for fields in header.values())
    offsets = [start, start + 4 * elements]
    header["large"] = {"dtype": "F32", "shape": [elements], "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + size :])
    os.truncate(path, 8 + len(text) + offsets[1])


@pytest.mark.parametrize("is_folder", [False, True])
def test_tensors_that_take_no_space_on_the_disk_are_refused(tmp_path, is_folder):
    path = tmp_path / files.SINGLE_FILE
    st.save_file(ARRAYS, path)
    add_large_tensor(path, 2**20)
    assert files.open_checkpoint(path).tensors["large"].shape == (2**20,)
    st.save_file(ARRAYS, path)
    add_large_tensor(path, 2**38)
    with pytest.raises(UserError, match="is damaged .its files have 1,099,511,.* sparse or links"):
        files.open_checkpoint(tmp_path if is_folder else path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_any_float_is_read_as_float32_from_file_folder_and_shards(tmp_path, dtype):
    kind = getattr(ml_dtypes, dtype, dtype)
    arrays = {name: array.astype(kind) for name, array in ARRAYS.items()}
    st.save_file(arrays, tmp_path / files.SINGLE_FILE)
    (tmp_path / "shards").mkdir()
    sharded(tmp_path / "shards", arrays)
    (tmp_path / "config.json").write_text('{"depth": 2}')
    for source in (tmp_path, tmp_path / files.SINGLE_FILE, tmp_path / "shards"):
        found = read(source)
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], array)
    assert files.open_checkpoint(tmp_path / files.SINGLE_FILE).config == {"depth": 2}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_written_files_are_read_by_the_safetensors_library(tmp_path, dtype):
    tensors = {
        name: files.LazyTensor(array.T.shape, lambda array=array: array.T)
        for name, array in ARRAYS.items()
    }
    files.write_tensors(tmp_path / "x.safetensors", tensors, dtype=dtype, metadata={"k": "v"})
    found = st.load_file(tmp_path / "x.safetensors")
    for name, array in ARRAYS.items():
        assert str(found[name].dtype) == dtype
        np.testing.assert_array_equal(found[name].astype(np.float32), array.T)
    with pytest.raises(FileExistsError):
        files.write_tensors(tmp_path / "x.safetensors", tensors, metadata={})


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vit.pth", "mp_rank_00.pt", "last.ckpt"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=f"{name} is a pickle.*safetensors.torch.save_file"):
            files.open_checkpoint(source)


def test_missing_shard_and_missing_tensor_are_named(tmp_path):
    sharded(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.unlink()
    with pytest.raises(
        UserError, match=r"lacks 1 of 2 shards \(model-00002-of-00002.safetensors\)"
    ):
        files.open_checkpoint(tmp_path)
    st.save_file({"other": ARRAYS["b.bias"]}, second)
    with pytest.raises(UserError, match="lacks the tensor b.bias"):
        files.open_checkpoint(tmp_path)


def test_index_cannot_point_outside_its_folder(tmp_path):
    st.save_file(ARRAYS, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a.weight": "../secret.safetensors"}}
    (folder / files.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks 1 of 1 shards \(secret.safetensors\)"):
        files.open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 30, -5])
def test_truncated_file_is_an_error(tmp_path, keep):
    path = tmp_path / files.SINGLE_FILE
    st.save_file(ARRAYS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model.safetensors is damaged \("):
        files.open_checkpoint(tmp_path)


def test_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist: check the path"):
        files.open_checkpoint(tmp_path / "x")
    with pytest.raises(UserError, match=r"has neither model.safetensors nor"):
        files.open_checkpoint(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is not a .safetensors file"):
        files.open_checkpoint(tmp_path / "model.gguf")
    st.save_file(ARRAYS, tmp_path / files.SINGLE_FILE)
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json"):
            files.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."],
)
def test_prefixes_of_pytorch_wrappers_are_removed(tmp_path, prefix):
    st.save_file({prefix + k: v for k, v in ARRAYS.items()}, tmp_path / "x.safetensors")
    assert read(tmp_path / "x.safetensors").keys() == ARRAYS.keys()
    inner = {f"model._orig_mod.{k}": v for k, v in ARRAYS.items()}
    st.save_file(inner, tmp_path / "y.safetensors")
    assert read(tmp_path / "y.safetensors").keys() == {f"model.{k}" for k in ARRAYS}


def test_a_submodule_called_module_keeps_its_name_and_copies_are_refused(tmp_path):
    kept = {"module.a.weight": ARRAYS["a.weight"], "b.bias": ARRAYS["b.bias"]}
    st.save_file(kept, tmp_path / "x.safetensors")
    assert read(tmp_path / "x.safetensors").keys() == kept.keys()
    st.save_file(ARRAYS | {"_orig_mod.b.bias": ARRAYS["b.bias"]}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="has some tensors twice, with and without a prefix"):
        read(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    ("dtype", "value", "largest"),
    [("float16", -1e5, "65504"), ("float16", 65520.0, "65504"), ("bfloat16", 3.4e38, "3.38")],
)
def test_values_beyond_the_dtype_are_refused_with_tensor_and_value(tmp_path, dtype, value, largest):
    array, number = np.array([1.0, value], np.float32), re.escape(f"{value:g}")
    tensors = {"b.bias": files.LazyTensor((2,), lambda: array)}
    with pytest.raises(UserError, match=rf"b.bias holds {number}, which {dtype} .*{largest}"):
        files.write_tensors(tmp_path / "x.safetensors", tensors, dtype=dtype, metadata={})


def test_the_largest_float16_is_written(tmp_path):
    # 65519 is the largest float32 integer that rounds to 65504 instead of infinity.
    tensors = {"b": files.LazyTensor((2,), lambda: np.array([65504.0, 65519.0], np.float32))}
    files.write_tensors(tmp_path / "x.safetensors", tensors, dtype="float16", metadata={})
    assert st.load_file(tmp_path / "x.safetensors")["b"].tolist() == [65504.0, 65504.0]


def test_repeated_prefixes_of_all_names_are_removed_at_once(tmp_path):
    long = "module." * 10**6
    found = files._strip_wrappers({f"{long}a": 1, f"module.{long}b": 2}, tmp_path)
    assert found == {"a": 1, "module.b": 2}


def test_the_header_of_a_file_is_parsed_once(tmp_path, monkeypatch):
    tensors = {f"t{i}": np.full(2, i, np.float32) for i in range(20)}
    st.save_file(tensors, tmp_path / "a.safetensors")
    opened, real = [], safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda *a: opened.append(a) or real(*a))
    found = files.open_checkpoint(tmp_path / "a.safetensors").tensors
    assert all((found[name].read() == value).all() for name, value in tensors.items())
    assert len(opened) == 1
