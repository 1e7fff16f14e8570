"""Strict comparison of arrays with a model's parameters. Error messages list all mismatches."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyArrays, LazyTensor
from invnext_jax.weights.layout import LeafSlice, Rule, pytorch_names, to_tree

Shapes = dict[str, tuple[int, ...]]
_MAX_ROWS = 10_000  # limit per table of mismatches; no supported model has more tensors


def leaf_shapes(tree: Mapping[str, Any]) -> Shapes:
    """Returns the shapes of the leaves of nested dicts, by path (separated by slashes)."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {path: tuple(np.shape(leaf)) for path, leaf in flat.items()}


def match_tree(tree: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Checks that `tree` has exactly the leaves of `expected`.

    Args:
      tree: nested dicts of arrays or of tensors that are read on demand. They are read after all
        shapes have been compared.
      expected: nested dicts of arrays or abstract arrays.
      source: origin of `tree`, for the error message.

    Returns:
      `tree` as NumPy arrays with the dtypes of `expected`.

    Raises:
      UserError: leaves are missing or unexpected, or have a different shape.
    """
    check_shapes(leaf_shapes(tree), leaf_shapes(expected), source)
    return jax.tree.map(lambda x, like: np.asarray(x, like.dtype), tree, expected)


def read_matching(tree: Mapping[str, Any], expected: Shapes) -> dict[str, Any]:
    """Reads the tensors that have the expected shape. The others are not replaced by arrays.

    Args:
      tree: nested dicts of tensors that are read on demand.
      expected: shapes by path.
    """
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    for path, shape in expected.items():
        if path in flat and tuple(np.shape(flat[path])) == shape:
            flat[path] = np.asarray(flat[path])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def read_tree(
    tensors: Mapping[str, LazyTensor], expected: Shapes, rules: Sequence[Rule], source: str
) -> dict[str, Any]:
    """Reads PyTorch tensors into a JAX tree after checking all names and shapes.

    Args:
      tensors: tensors by name.
      expected: shapes of the parameters of the tree.
      rules: table of rules that convert the tensors to the tree.
      source: origin of the tensors, for the error message.

    Raises:
      UserError: tensors are missing or unexpected, or have a different shape.
    """
    expected_tensors = {
        name: pytorch_shape(expected[leaf.path], leaf)
        for name, leaf in pytorch_names(expected, rules)
    }
    check_shapes({name: x.shape for name, x in tensors.items()}, expected_tensors, source)
    return to_tree(LazyArrays(tensors), rules)


def pytorch_shape(shape: tuple[int, ...], leaf: LeafSlice) -> tuple[int, ...]:
    """Returns the shape of a leaf slice's PyTorch tensor, given the shape of the leaf."""
    shape = shape if leaf.layer is None else shape[1:]
    array = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(leaf.layout.to_pytorch, array).shape


def check_shapes(shapes: Shapes, expected: Shapes, source: str) -> None:
    """Raises a `UserError` with a table of all differences if there are any."""
    rows = []
    for name in sorted(shapes.keys() | expected.keys()):
        pair = shapes.get(name), expected.get(name)
        if pair[0] != pair[1]:
            kind = "missing" if pair[0] is None else "surplus" if pair[1] is None else "shape"
            rows.append(f"{kind:8} {name}: found {pair[0]}, expected {pair[1]}")
    if rows:
        count = len(rows) - _MAX_ROWS
        raise UserError(
            f"{source} does not match the configured model. Change the file or the sizes:",
            *rows[:_MAX_ROWS],
            *([f"and {count} more"] if count > 0 else []),
        )
