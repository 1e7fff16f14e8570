"""Arrays of MATLAB files equal those of SciPy, and damaged files are errors."""

import io
import struct
import zlib

import numpy as np
import pytest
from scipy import io as scipy_io

from invnext_jax.evaluation.truth import matlab_file

POSITIONS = np.random.default_rng(0).uniform(1, 60, (2, 15, 8))


def save(compressed=False, **variables):
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


def element(kind, data, order="<"):
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def variable(name, values, shape, order="<", flags=matlab_file.DOUBLE):
    """An array of doubles whose values are stored as bytes, as MATLAB does for small integers."""
    parts = [
        element(6, struct.pack(f"{order}II", flags, 0), order),
        element(5, struct.pack(f"{order}{len(shape)}i", *shape), order),
        element(1, name, order),
        element(2, bytes(values), order),
    ]
    return element(matlab_file.MATRIX, b"".join(parts), order)


def header(order="<"):
    return b"MATLAB 5.0 MAT-file".ljust(124) + (b"\0\1IM" if order == "<" else b"\1\0MI")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_equal_those_of_scipy(compressed, dtype):
    data = save(
        compressed, scale=2.0, text="abc", pos_img=POSITIONS.astype(dtype), other=np.arange(99)
    )
    expected = scipy_io.loadmat(io.BytesIO(data))["pos_img"]
    found = matlab_file.read_array(data, "pos_img")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("order", ["<", ">"])
def test_values_may_have_a_smaller_type_and_the_other_byte_order(order):
    data = header(order) + variable(b"pos_img", range(12), (2, 2, 3), order)
    found = matlab_file.read_array(data, "pos_img")
    np.testing.assert_array_equal(found, scipy_io.loadmat(io.BytesIO(data))["pos_img"])
    np.testing.assert_array_equal(found, np.arange(12).reshape(2, 2, 3, order="F"))


DAMAGED = {
    "text": b"MATLAB",
    "other variable": save(other=POSITIONS),
    "cells": save(pos_img=np.array([[["x"]]], dtype=object)),
    "complex numbers": save(pos_img=POSITIONS * 1j),
    "truncated": save(pos_img=POSITIONS)[:-9],
    "compressed": save(True, pos_img=POSITIONS)[:-9],
    "shape": header() + variable(b"pos_img", range(12), (2, 2, 4)),
    "negative shape": header() + variable(b"pos_img", range(12), (-2, -6)),
    "huge shape": header() + variable(b"pos_img", b"", (2**31 - 1,) * 9),
    "size": header() + struct.pack("<II", matlab_file.MATRIX, 2**32 - 1) + bytes(64),
    "sparse": header() + variable(b"pos_img", range(12), (2, 6), flags=5),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_errors(kind):
    with pytest.raises(ValueError, match=r"it |the variable|Error|a small element"):
        matlab_file.read_array(DAMAGED[kind], "pos_img")


def test_deep_cells_are_not_followed():
    # SciPy overflows the stack and crashes.
    cells, inner = [], variable(b"", b"\1", (1, 1))
    size = len(inner)
    for _ in range(100_000):
        start = variable(b"pos_img", b"", (1, 1), flags=1)[8:-8]
        cells.append(struct.pack("<II", matlab_file.MATRIX, len(start) + size) + start)
        size += len(cells[-1])
    data = header() + b"".join(reversed(cells)) + inner
    with pytest.raises(ValueError, match="the variable has no"):
        matlab_file.read_array(data, "pos_img")


def test_decompressed_size_is_limited_over_all_variables(monkeypatch):
    monkeypatch.setattr(matlab_file, "MAX_DECOMPRESSED", 2**20)
    block = zlib.compress(element(matlab_file.MATRIX, bytes(2**19)))
    blocks = struct.pack("<II", matlab_file.COMPRESSED, len(block)) + block
    with pytest.raises(ValueError, match="no variable"):
        matlab_file.read_array(header() + blocks, "pos_img")
    with pytest.raises(ValueError, match="more than 1048576 bytes when decompressed"):
        matlab_file.read_array(header() + blocks * 2, "pos_img")
