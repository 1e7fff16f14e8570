"""Our own file format for trained weights: a .safetensors file and a .json of the same name.

The tensors are float32, contiguous, under their path in the parameter tree
("encoder/blocks/attn/qkv/kernel"); the JSON holds what is needed to build the modules again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.weights.files import Reading, Tensor, open_checkpoint, write_tensors

FORMAT = 1


def tensors_of(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Nested dicts of arrays as {"a/b": tensor}, sorted, each made float32 when it is read."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {
        path: Tensor(tuple(np.shape(leaf)), lambda x=leaf: np.asarray(x, dtype=np.float32))
        for path, leaf in sorted(flat.items())
    }


def find_nonfinite(params: Any) -> str | None:
    """Returns the path of the first parameter that contains NaN or infinity, or None."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.sum(leaf, dtype=np.float64)):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


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
    about = {"format": FORMAT, "parts": sorted(params), **about}
    atomic_file.remove_temporary_files(path)  # they may be large
    # The description comes last: without it there is no export.
    with atomic_file.atomic_path(json_path) as json_part, atomic_file.atomic_path(path) as part:
        write_tensors(part, tensors_of(params), metadata={"format": "invnext-jax"})
        json_part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{json_path} is damaged ({error}): export it again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{json_path} has format {found}, but this version reads format {FORMAT}: "
            "export it again, or use the version that wrote it"
        )
    flat = dict(Reading(open_checkpoint(path).tensors))
    return flax.traverse_util.unflatten_dict(flat, sep="/"), about


def holds(path: str | Path, params: Mapping[str, Any]) -> bool:
    """Whether the file has exactly the tensors of `params`, bit for bit; reads one at a time.

    Raises:
      UserError: the file cannot be read.
    """
    return same_tensors(open_checkpoint(path).tensors, tensors_of(params))


def same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names, shapes and float32 values, bit for bit."""
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in wanted.items()}:
        return False
    return all(np.array_equal(_bits(found[name]), _bits(wanted[name])) for name in wanted)


def _bits(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint32)


def require_part(path: str, parts: Mapping[str, Any], name: str) -> None:
    """Raises `UserError` unless `parts` of the file `path` has a part `name`."""
    if name not in parts:
        raise UserError(f"{path} holds no {name} model, only {', '.join(parts)}: name another file")


def config_mismatches(
    described: Mapping[str, Any], section: Any, names: Iterable[str]
) -> list[tuple]:
    """Returns (field, configured value, described value) of each described field that differs."""
    return [
        (name, section[name], described[name])
        for name in names
        if name in described and described[name] != section[name]
    ]
