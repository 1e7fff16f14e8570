"""The export format of this package: a .safetensors file and a .json file with the same name.

The tensors are contiguous float32 arrays. Their names are their paths in the parameter tree
("encoder/blocks/attn/qkv/kernel"). The .json file has the config that is needed to build the
modules.
"""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from invnext_jax import atomic_file, json_file
from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyTensor, open_checkpoint, read_metadata, write_tensors
from invnext_jax.weights.model_sizes import check_sizes

FORMAT = 1
SECTIONS = ("encoder", "predictor", "teacher", "text", "data")  # sections of a config
# Name in the metadata of the weights of a hash of the config, which shows exchanged files.
_CONFIG_HASH = "config_sha256"
MAX_NESTING = 32  # maximum depth of a parameter tree
ASSETS = Path(__file__).parent.parent / "assets"


def resolve_path(path: str) -> str:
    """Returns `path`, or the path of the synthetic world's image teacher if `path` is "assets"."""
    return str(ASSETS / "siglip2_tiny_world.safetensors") if path == "assets" else path


def lazy_tensors(tree: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Flattens nested dicts of arrays to a sorted dict {"a/b": tensor} of float32 tensors."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {
        path: LazyTensor(tuple(np.shape(leaf)), lambda x=leaf: np.asarray(x, dtype=np.float32))
        for path, leaf in sorted(flat.items())
    }


def find_nonfinite(params: Any) -> str | None:
    """Returns the path of the first parameter that contains NaN or infinity, or None."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.sum(leaf, dtype=np.float64)):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def description_path(path: str | Path) -> Path:
    """Returns the path of the .json file that belongs to a .safetensors file.

    Raises:
      UserError: the name does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"the name of the weights file, {path.name!r}, must end in .safetensors")
    return path.with_suffix(".json")


def write_export(path: str | Path, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes the .safetensors and the .json file atomically.

    Args:
      path: the .safetensors file; its folder is created if needed.
      params: parameter tree with an entry for each part ("encoder", "predictor", ...).
      about: description for the .json file; "format" and "parts" are added.

    Raises:
      UserError: the name does not end in .safetensors.
    """
    path, json_path = Path(path), description_path(path)
    about = {"format": FORMAT, "parts": sorted(params), **about}
    atomic_file.remove_temporary_files(path)  # these may be large
    with atomic_file.temporary_folder(path) as folder:
        part, json_part = folder / path.name, folder / json_path.name
        metadata = {"format": "invnext-jax", _CONFIG_HASH: json_file.hash_json(about.get("config"))}
        write_tensors(part, lazy_tensors(params), metadata=metadata)
        json_part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        # The .json file is renamed last, because an export without it is not valid.
        atomic_file.replace(part, path)
        atomic_file.replace(json_part, json_path)


def open_export(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Opens an export written by `write_export`. Only the header of the weights is read.

    Returns:
      The parameter tree, whose leaves are of the type `LazyTensor`, and the description. Check the
      shapes of the leaves before reading them, for example with `match.match_tree`.

    Raises:
      UserError: a file is missing or damaged, or was written by an incompatible version.
    """
    path, json_path = Path(path), description_path(path)
    for file in (path, json_path):
        if not os.path.isfile(file):
            raise UserError(
                f"there is no file {file}: give the path of a .safetensors file that "
                "launch/export.py or launch/import_weights.py wrote, next to its .json file"
            )
    about = json_file.read_value(json_path, "export it again")
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{json_path} has format {version}, but this version reads format {FORMAT}: "
            "export it again, or use the version that wrote it"
        )
    config, source = about.get("config", {}), about.get("source", {})
    sections = [config.get(name, {}) for name in SECTIONS] if isinstance(config, dict) else [None]
    if not all(isinstance(section, dict) for section in (*sections, source)):
        raise UserError(f"{json_path} has a config that is not an object: export it again")
    check_sizes(config, str(json_path))
    flat = open_checkpoint(path).tensors
    expected = read_metadata(path).get(_CONFIG_HASH)  # None: written by an older version
    if expected not in (None, json_file.hash_json(about.get("config"))):
        raise UserError(
            f"{json_path} does not describe the weights in {path}, which were exported with a "
            "different config: use the two files of one export"
        )
    for name in flat:
        # If one path is a prefix of another, the same node would be an array and a dict.
        parents = itertools.accumulate(name.split("/")[:-1], "{}/{}".format)
        if name.count("/") > MAX_NESTING or any(parent in flat for parent in parents):
            raise UserError(
                f"{path} has the tensor {name[:200]}, which is not a path: export it again"
            )
    return flax.traverse_util.unflatten_dict(flat, sep="/"), about


def contains_tensors(path: str | Path, params: Mapping[str, Any]) -> bool:
    """Returns whether a file contains exactly the tensors of `params`, bit for bit.

    Only one tensor at a time is held in memory.

    Raises:
      UserError: the file cannot be read.
    """
    return same_tensors(open_checkpoint(path).tensors, lazy_tensors(params))


def same_tensors(a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor]) -> bool:
    """Returns whether all names, shapes and float32 values are equal, bit for bit."""
    if {name: x.shape for name, x in a.items()} != {name: x.shape for name, x in b.items()}:
        return False
    return all(np.array_equal(_bits(a[name]), _bits(b[name])) for name in a)


def _bits(tensor: LazyTensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint32)


def require_part(path: str, parts: Mapping[str, Any], name: str) -> None:
    """Raises a `UserError` if `name` is not in `parts`, the contents of the file `path`."""
    if not isinstance(parts.get(name), dict):
        raise UserError(
            f"{path} has no {name} model, only {', '.join(parts)}: use a different file"
        )


def config_mismatches(
    described: Mapping[str, Any], section: Any, names: Iterable[str]
) -> list[tuple]:
    """Compares a config section with the description of a file.

    Args:
      described: fields and values from the description of the file.
      section: section of the config.
      names: fields to compare; fields that are not in `described` are skipped.

    Returns:
      A tuple (field, configured value, described value) for each field that differs.
    """
    return [
        (name, section[name], described[name])
        for name in names
        if name in described and described[name] != section[name]
    ]
