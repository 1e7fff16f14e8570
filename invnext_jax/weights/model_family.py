"""Functions shared by the importers of image, video and text models in transformers' format."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyTensor
from invnext_jax.weights.layout import Rule

_IGNORED = re.compile(r"embeddings\.(position_ids|mask_token)")


class ModelFamily(NamedTuple):
    """How to import one kind of model.

    Attributes:
      rules: map the names that `adapt` returns to paths in the parameter tree.
      sizes: function that reads the sizes of the model from the contents of config.json. It raises
        a UserError if the file describes a different model.
      adapt: function that returns only the tensors of the encoder, with the names in `rules`,
        without reading their data.
    """

    rules: list[Rule]
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]]
    adapt: Callable[[Mapping[str, LazyTensor]], dict[str, LazyTensor]]


def select_tower(tensors: Mapping[str, LazyTensor], anchor: str) -> dict[str, LazyTensor]:
    """Returns all tensors that have the same prefix as the tensor `anchor`, without the prefix.

    Raises:
      UserError: the file does not have exactly one such tensor.
    """
    anchors = [name for name in tensors if name == anchor or name.endswith(f".{anchor}")]
    if len(anchors) != 1:
        raise UserError(
            f"the file has {len(anchors)} tensors {anchor}, but a model of this kind has one: "
            "use the file that belongs to config.json"
        )
    prefix = anchors[0].removesuffix(anchor)
    tower = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return {name: tensor for name, tensor in tower.items() if not _IGNORED.fullmatch(name)}


def split_fused(
    tensors: Mapping[str, LazyTensor], fused: str, parts: tuple[str, ...]
) -> dict[str, LazyTensor]:
    """Splits fused tensors into equal parts along the first axis; other tensors are unchanged.

    Args:
      tensors: tensors by name.
      fused: regular expression that matches the names of fused tensors; has the groups `path` and
        `leaf`.
      parts: names of the parts.
    """
    split = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(fused, name)
        if match and tensor.shape and tensor.shape[0] % len(parts) == 0:
            for i, part in enumerate(parts):
                split[f"{match['path']}{part}.{match['leaf']}"] = _split_part(tensor, i, len(parts))
        else:
            split[name] = tensor
    return split


def _split_part(tensor: LazyTensor, i: int, count: int) -> LazyTensor:
    size = tensor.shape[0] // count
    return LazyTensor((size, *tensor.shape[1:]), lambda: np.split(tensor.read(), count)[i])


def square_side(config: Mapping[str, Any], name: str) -> int:
    """Returns a side length, which config.json has as a number or as a list of equal numbers.

    Raises:
      UserError: the sides differ or are not whole numbers.
    """
    sides = config[name] if isinstance(config[name], list) else [config[name]]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise UserError(
            f"config.json has {name}={config[name]!r}, but only squares are supported: "
            "use a different checkpoint"
        )
    return sides[0]
