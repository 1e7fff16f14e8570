"""Rows of chunked arrays equal those of the concatenated array, and damaged files are refused."""

import struct

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.feature_store.chunked_array import ChunkedArray, write_array


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(rows, 2, 3)).astype(np.float32) for rows in (4, 0, 5, 1)]
    paths = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        write_array(path, array)
    return paths, np.concatenate(arrays)


@pytest.mark.parametrize("rows", [[0], [9, 0, 4, 4, 3], [], list(range(10))])
def test_rows_are_those_of_the_concatenated_array(parts, rows):
    paths, expected = parts
    array = ChunkedArray(paths)
    np.testing.assert_array_equal(array.take(np.array(rows, np.int64)), expected[rows])
    assert (array.shape, array.dtype, array.nbytes) == ((10, 2, 3), np.float32, expected.nbytes)
    np.testing.assert_array_equal(array.read(), expected)


def test_damaged_and_different_files_are_refused(parts, tmp_path):
    paths, _ = parts
    write_array(tmp_path / "other.npy", np.zeros((2, 2, 4), np.float32))
    with pytest.raises(UserError, match=r"other.npy has rows of shape \(2, 4\)"):
        ChunkedArray([*paths, tmp_path / "other.npy"])
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    with pytest.raises(UserError, match="0.npy is damaged"):
        ChunkedArray(paths)
    (tmp_path / "objects.npy").write_bytes(b"x" * 200)
    with pytest.raises(UserError, match="objects.npy is damaged"):
        ChunkedArray([tmp_path / "objects.npy"])


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *(
            ("|V0", "(9223372036854775808, 1)"),
            ("<f4", "(True, 3)"),
            ("<f4", "(4611686018427387904, 0)"),
        ),
        *((kind, "(0, 3)") for kind in ("|V0", "<c8", "<i4", "|b1", "<U1", "[('a','<f4')]")),
    ],
)
def test_forged_headers_are_damage(kind, shape, tmp_path):
    descr = kind if kind.startswith("[") else f"'{kind}'"
    header = f"{{'descr':{descr},'fortran_order':False,'shape':{shape}}}\n".encode()
    path = tmp_path / "a.npy"
    size = 12 * (shape == "(True, 3)")
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(size))
    with pytest.raises(UserError, match="a.npy is damaged"):
        ChunkedArray([path])
