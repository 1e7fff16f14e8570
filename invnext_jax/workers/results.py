"""Results of workers as JSON and arrays, which the parent decodes without unpickling.

A worker decodes untrusted videos, so its parent does not trust what it sends. Results consist of
None, numbers, strings, NumPy arrays, instances of registered types, and lists, tuples and dicts of
these. In JSON, each of the last five is an object with one entry: {kind: content}.
"""

import math
import mmap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

MIN_SHARED_BYTES = 4096  # smaller arrays are not passed through shared memory
ALIGNMENT = 64  # alignment of the arrays in shared memory, in bytes
DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
MAX_DIMENSIONS = 8
MAX_INTEGER = 2**64  # maximum absolute value of an integer
_REGISTERED: dict[str, "_ResultType"] = {}
# Exceptions that the decoding of invalid data can raise.
_REJECTED = (
    *(AttributeError, LookupError, TypeError, ValueError),
    *(ArithmeticError, RecursionError),
)


class InvalidResultError(Exception):
    """A worker sent bytes that are not a result, or a result that its function cannot return.

    The message is a noun phrase that completes the sentence "it sent ...".
    """


class _ResultType(NamedTuple):
    """A registered type.

    Attributes:
      cls: The type.
      hints: Allowed types of each field.
    """

    cls: type
    hints: dict[str, tuple[type, ...]]


def register_result_type(cls: type) -> type:
    """Registers a `NamedTuple` or dataclass as a type of results. Used as a decorator.

    The annotation of each field must be str, int, float, bool, None, or a union of these.
    """
    hints = {
        field: typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for field, hint in typing.get_type_hints(cls).items()
    }
    _REGISTERED[cls.__name__] = _ResultType(cls, hints)
    return cls


def are_arrays(value: Any, forms: Mapping[str, tuple[Any, tuple[int, ...]]]) -> bool:
    """Returns whether `value` is a dict of arrays with the given names, dtypes and shapes."""
    return (
        isinstance(value, dict)
        and value.keys() == forms.keys()
        and all(
            isinstance(value[name], np.ndarray)
            and value[name].dtype == dtype
            and value[name].shape == shape
            for name, (dtype, shape) in forms.items()
        )
    )


class ResultEncoder:
    """Encodes one result, and copies its large arrays into shared memory.

    Args:
      memory: Shared memory.

    Attributes:
      arrays: (dtype, shape, offset in `memory` or None) of each array.
      data: Bytes of the arrays that are not in `memory`, because they are small or do not fit.
    """

    def __init__(self, memory: mmap.mmap):
        self._memory, self._end = memory, 0
        self.arrays: list[tuple[str, tuple[int, ...], int | None]] = []
        self.data: list[memoryview] = []

    def encode(self, value: Any) -> Any:
        """Returns a JSON tree that `decode_result` decodes.

        Raises:
          TypeError: The value contains an object of another type.
        """
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            self.arrays.append(self._store(value))
            return {"array": len(self.arrays) - 1}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.encode(item) for item in value]}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.encode(item) for key, item in value.items()}}
        known = _REGISTERED.get(name := type(value).__name__)
        if known is not None and known.cls is type(value):
            return {name: {field: self.encode(getattr(value, field)) for field in known.hints}}
        raise TypeError(
            f"a data worker cannot return a {type(value)}: return numbers, strings, arrays, lists, "
            "tuples and dicts with strings as keys, or register its type with register_result_type"
        )

    def _store(self, array: np.ndarray) -> tuple[str, tuple[int, ...], int | None]:
        name = array.dtype.name
        if name not in DTYPES:
            raise TypeError(f"a data worker cannot return an array of {array.dtype}")
        native = np.asarray(array, DTYPES[name], order="C")
        content = memoryview(native.reshape(-1).view(np.uint8))
        start = -(-self._end // ALIGNMENT) * ALIGNMENT
        end = start + content.nbytes
        if content.nbytes < MIN_SHARED_BYTES or end > len(self._memory):
            self.data.append(content)
            return name, array.shape, None
        self._memory[start:end], self._end = content, end
        return name, array.shape, start


def decode_result(tree: Any, rows: Any, data: memoryview, memory: mmap.mmap) -> Any:
    """Decodes a result of `ResultEncoder`. Arrays are views of `data` and `memory`.

    Args:
      tree: Result of `encode`.
      rows: The attribute `arrays` of the encoder.
      data: The concatenated bytes of the attribute `data` of the encoder.
      memory: Shared memory. The worker can change its content at any time.

    Raises:
      InvalidResultError: An argument does not come from a `ResultEncoder`.
    """
    try:
        return _decode(tree, list(_decode_arrays(rows, data, memory)))
    except _REJECTED as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InvalidResultError(f"an invalid result ({reason})") from error


def _decode_arrays(rows: Any, data: memoryview, memory: mmap.mmap) -> Iterator[np.ndarray]:
    position = 0
    for name, shape, offset in rows:
        dtype = DTYPES[name]
        if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("the shape of an array is invalid")
        count = math.prod(shape)
        start, buffer = (position, data) if offset is None else (offset, memory)
        if type(start) is not int or not 0 <= start <= len(buffer) - count * dtype.itemsize:
            raise ValueError("an array exceeds its buffer")
        if offset is None:
            position += count * dtype.itemsize
        # `frombuffer` rejects empty arrays.
        array = np.frombuffer(buffer, dtype, count, start) if count else np.empty(0, dtype)
        yield array.reshape(shape)
    if position != len(data):
        raise ValueError("the arrays do not have the size of the data")


def _decode(node: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(node, dict):
        return _decode_scalar(node)
    ((kind, content),) = node.items()
    if kind == "array" and type(content) is int and content >= 0:
        return arrays[content]
    if kind in ("list", "tuple") and isinstance(content, list):
        items = [_decode(item, arrays) for item in content]
        return tuple(items) if kind == "tuple" else items
    if not isinstance(content, dict):
        raise ValueError(f"the content of {kind[:40]!r} is invalid")
    entries = {key: _decode(item, arrays) for key, item in content.items()}
    if kind == "dict":
        for key in entries:
            check_text(key)
        return entries
    cls, hints = _REGISTERED[kind]
    if entries.keys() != hints.keys() or not all(
        _has_type(entries[field], hint) for field, hint in hints.items()
    ):
        raise ValueError(f"the fields of {kind} are invalid")
    return cls(**entries)


def _decode_scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError("an integer has more than 64 bits")
    if isinstance(value, str):
        check_text(value)
    if value is None or isinstance(value, (int, float, str)):
        return value
    raise ValueError("a list has no kind")


def check_text(text: str) -> None:
    """Raises `ValueError` if a text cannot be written to a file, because it has a lone surrogate.

    Surrogates that represent the bytes of a file name are allowed.
    """
    if not text.isascii():
        text.encode("utf-8", "surrogateescape")


def _has_type(value: Any, hint: tuple[type, ...]) -> bool:
    return type(value) in hint or (type(value) is int and float in hint)
