"""Reads an array of numbers from a MATLAB 5 file.

`scipy.io.loadmat` is not used, because it crashes the process on some damaged files.

A file consists of a header and elements. An element is a tag (type and size) with data. A variable
is an element that contains the elements flags, dimensions, name and values, and may be compressed.
Source: MathWorks, "MAT-File Format", chapter "Level 5 MAT-Files".
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

HEADER_BYTES = 128
MAX_DECOMPRESSED = 2**26  # bytes of all variables of a file
MATRIX, COMPRESSED = 14, 15  # types of elements
DOUBLE, SINGLE = 6, 7  # classes of variables
COMPLEX = 1 << 11  # flag of a variable
# Types of elements with numbers. Values of variables may have a smaller type than their class.
DTYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}


class _Element(NamedTuple):
    """An element of a file.

    Attributes:
      kind: Type of the data.
      data: The data.
    """

    kind: int
    data: memoryview


def read_array(data: bytes, name: str) -> np.ndarray:
    """Returns a variable of real numbers.

    Args:
      data: Content of the file.
      name: Name of the variable.

    Raises:
      ValueError: The file is damaged or too large when decompressed, or has no such variable.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER_BYTES - 2 : HEADER_BYTES])
    if order is None:
        raise ValueError("it is not a MATLAB 5 file")
    for element in _variables(memoryview(data)[HEADER_BYTES:], order):
        parts = _elements(element.data, order)
        flags, dimensions, found = (next(parts, _Element(0, memoryview(b""))) for _ in range(3))
        if bytes(found.data) == name.encode():
            values = next(parts, None)
            return _convert(flags, dimensions, values, order)
    raise ValueError(f"it has no variable {name}")


def _variables(data: memoryview, order: str) -> Iterator[_Element]:
    """Yields the variables after decompression."""
    remaining = MAX_DECOMPRESSED
    for element in _elements(data, order, padded=False):
        if element.kind == COMPRESSED:
            content, remaining = _decompress(element.data, remaining)
            element = next(_elements(content, order), element)
        if element.kind == MATRIX:
            yield element


def _decompress(data: memoryview, limit: int) -> tuple[memoryview, int]:
    """Returns decompressed data, and the number of bytes that may still be decompressed."""
    try:
        content = zlib.decompressobj().decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) > limit:
        raise ValueError(f"it has more than {MAX_DECOMPRESSED} bytes when decompressed")
    return memoryview(content), limit - len(content)


def _elements(data: memoryview, order: str, *, padded: bool = True) -> Iterator[_Element]:
    """Yields the elements in `data`.

    Args:
      data: The elements, each of which starts at a multiple of 8 bytes if `padded`.
      order: Byte order, "<" or ">".
      padded: Whether compressed elements are padded, too.
    """
    start = 0
    while start + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, start)
        if kind >> 16:  # a small element: the size is in the tag, and the data in its second half
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, start + 4, start + 8
            if size > 4:
                raise ValueError(f"a small element has {size} bytes")
        else:
            begin = start + 8
            end = begin + (size if kind == COMPRESSED and not padded else -(-size // 8) * 8)
        if begin + size > len(data):
            raise ValueError("it is truncated")
        yield _Element(kind, data[begin : begin + size])
        start = end


def _convert(
    flags: _Element, dimensions: _Element, values: _Element | None, order: str
) -> np.ndarray:
    """Returns the values of a variable with its shape."""
    if len(flags.data) < 4 or values is None or values.kind not in DTYPES:
        raise ValueError("the variable has no numbers")
    (word,) = struct.unpack_from(f"{order}I", flags.data)
    if word & 0xFF not in (DOUBLE, SINGLE) or word & COMPLEX:
        raise ValueError("the variable has no real numbers")
    if dimensions.kind != 5 or len(dimensions.data) % 4:
        raise ValueError("the variable has no dimensions")
    shape = np.frombuffer(dimensions.data, f"{order}i4").tolist()
    dtype = np.dtype(order + DTYPES[values.kind])
    if len(shape) > 8 or min(shape, default=-1) < 0:
        raise ValueError(f"the variable has the dimensions {shape[:8]}")
    if math.prod(shape) * dtype.itemsize != len(values.data):
        raise ValueError(f"the variable does not have {math.prod(shape)} values")
    return np.frombuffer(values.data, dtype).reshape(shape, order="F")
