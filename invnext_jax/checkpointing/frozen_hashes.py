"""Hashes of frozen parameters, which are read from files at each start of a run.

Checkpoints contain the hashes instead of the parameters. The files may be moved or exported again
between two starts, but the parameters must not change.
"""

import concurrent.futures
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def hash_groups(frozen: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of each group of frozen parameters.

    Args:
      frozen: a dict from the name of each group to its tree of host arrays. The names, shapes,
          dtypes and values of the arrays are hashed.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        return {name: _hash_tree(tree, pool) for name, tree in frozen.items()}


def _hash_tree(tree: Any, pool: concurrent.futures.Executor) -> str:
    named = jax.tree_util.tree_leaves_with_path(tree)
    named = sorted((jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in named)
    digests = pool.map(_hash_array, [x for _, x in named])
    lines = [f"{name} {digest}" for (name, _), digest in zip(named, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_array(leaf: Any) -> str:
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
