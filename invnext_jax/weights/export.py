"""Our own file format for trained weights: a .safetensors file and a .json of the same name.

The tensors are float32, contiguous, under their path in the parameter tree
("encoder/blocks/attn/qkv/kernel"); the JSON holds what is needed to build the modules again.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from invnext_jax.errors import UserError

FORMAT = 1


def flatten_tree(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turns nested dicts of arrays into {"a/b": array}, every array float32 and contiguous."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": leaf for rest, leaf in flatten_tree(value).items()}
        else:
            # safetensors writes the memory as it lies: a transposed view would come back scrambled.
            flat[name] = np.array(value, dtype=np.float32, order="C")
    return flat


def unflatten_tree(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten_tree`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def description_path(path: str | Path) -> Path:
    """Where the JSON of a .safetensors file lies.

    Raises:
      UserError: the name does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"the name of the weights file must end in .safetensors, not {path.name!r}")
    return path.with_suffix(".json")


def write_export(path: str | Path, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes both files; a reader never sees half a file.

    Args:
      path: the .safetensors file; its folder is made if needed.
      params: parameter tree, one entry for each part ("encoder", "predictor", ...).
      about: JSON-able description; "format" and "parts" are added.

    Raises:
      UserError: the name does not end in .safetensors.
    """
    path, json_path = Path(path), description_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "parts": sorted(params), **about}
    temporary, json_temporary = (p.with_name(p.name + ".tmp") for p in (path, json_path))
    save_file(flatten_tree(params), temporary, metadata={"format": "invnext-jax"})
    json_temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shutil.copymode(json_temporary, temporary)  # the library writes for the owner alone
    os.replace(temporary, path)
    os.replace(json_temporary, json_path)


def read_export(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `write_export` wrote.

    Returns:
      The parameter tree (float32 numpy arrays) and the description.

    Raises:
      UserError: a file is missing or damaged, or written by a newer version.
    """
    path, json_path = Path(path), description_path(path)
    for file in (path, json_path):
        if not file.is_file():
            raise UserError(f"there is no file {file}: an export is a .safetensors and a .json")
    try:
        about = json.loads(json_path.read_text(encoding="utf-8"))
        flat = load_file(path)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise UserError(f"{path} or its .json is damaged ({error}): export it again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{json_path} has format {found}, but this version reads format {FORMAT}: "
            "export it again, or use the version that wrote it"
        )
    return unflatten_tree(flat), about


def holds(path: str | Path, params: Mapping[str, Any]) -> bool:
    """Whether the file has exactly the tensors of `params`, bit for bit.

    Raises:
      UserError: the file cannot be read.
    """
    found, wanted = flatten_tree(read_export(path)[0]), flatten_tree(params)
    return found.keys() == wanted.keys() and all(
        found[name].shape == leaf.shape and found[name].tobytes() == leaf.tobytes()
        for name, leaf in wanted.items()
    )
