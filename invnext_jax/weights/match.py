"""Strict matching of arrays with what a model wants: all that does not fit stands in one table."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.weights.files import Reading, Tensor
from invnext_jax.weights.layout import Rule, names_of, to_tree

Shapes = dict[str, tuple[int, ...]]


def shapes_of(tree: Mapping[str, Any]) -> Shapes:
    """Path with slashes -> shape, of nested dicts of anything with a shape."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {path: tuple(np.shape(leaf)) for path, leaf in flat.items()}


def match_tree(found: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Checks that `found` has exactly the leaves of `wanted`.

    Args:
      found: nested dicts of arrays.
      wanted: nested dicts of anything with a shape and a dtype.
      source: where `found` comes from, for the message.

    Returns:
      `found`, in the dtypes of `wanted`.

    Raises:
      UserError: a leaf is missing, surplus or of another shape; a table names all of them.
    """
    _compare(shapes_of(found), shapes_of(wanted), source)
    return jax.tree.map(lambda x, like: np.asarray(x, like.dtype), found, wanted)


def read_tree(
    tensors: Mapping[str, Tensor], wanted: Shapes, rules: Sequence[Rule], source: str
) -> dict[str, Any]:
    """Reads another project's tensors as our tree, once all names and shapes are found to fit.

    Args:
      tensors: by their names.
      wanted: our parameters.
      rules: between both.
      source: where the tensors come from, for the message.

    Raises:
      UserError: a tensor is missing, surplus or of another shape; a table names all of them.
    """
    theirs = {name: their_shape(wanted[at.path], at) for name, at in names_of(wanted, rules)}
    _compare({name: tensor.shape for name, tensor in tensors.items()}, theirs, source)
    return to_tree(Reading(tensors), rules)


def their_shape(shape: tuple[int, ...], source: Any) -> tuple[int, ...]:
    """Shape of their tensor, from that of our array and its `layout.Source`."""
    shape = shape if source.layer is None else shape[1:]
    array = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(source.layout.theirs, array).shape


def _compare(found: Shapes, wanted: Shapes, source: str) -> None:
    rows = []
    for name in sorted(found.keys() | wanted.keys()):
        shapes = found.get(name), wanted.get(name)
        if shapes[0] != shapes[1]:
            kind = "missing" if shapes[0] is None else "surplus" if shapes[1] is None else "shape"
            rows.append(f"  {kind:8} {name}: found {shapes[0]}, wanted {shapes[1]}")
    if rows:
        table = "\n".join(rows)
        raise UserError(
            f"{source} does not fit the configured model; change the file or the sizes:\n{table}"
        )
