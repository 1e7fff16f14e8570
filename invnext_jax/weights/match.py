"""Strict matching of a tree of arrays with the shapes that a model wants."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np

from invnext_jax.errors import UserError


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
    flat_found = flax.traverse_util.flatten_dict(found, sep="/")
    flat_wanted = flax.traverse_util.flatten_dict(wanted, sep="/")
    rows = []
    for name in sorted(flat_found.keys() | flat_wanted.keys()):
        shapes = [
            tuple(np.shape(flat[name])) if name in flat else None
            for flat in (flat_found, flat_wanted)
        ]
        if shapes[0] != shapes[1]:
            kind = "missing" if shapes[0] is None else "surplus" if shapes[1] is None else "shape"
            rows.append(f"  {kind:8} {name}: found {shapes[0]}, wanted {shapes[1]}")
    if rows:
        table = "\n".join(rows)
        raise UserError(
            f"{source} does not fit the configured model; change the file or the sizes:\n{table}"
        )
    return jax.tree.map(lambda x, like: np.asarray(x, like.dtype), found, wanted)
