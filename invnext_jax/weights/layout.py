"""Conversion between PyTorch checkpoints and JAX parameter trees with tables of rules.

PyTorch stores the weight of a linear layer as [out in]. The layers of a stack have separate
tensors, with the number of the layer in their names. JAX trees have kernels of shape [in out], and
the layers of a stack are stacked along a new first axis. A rule converts one tensor in both
directions.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import numpy as np

Array = np.ndarray


class Layout(NamedTuple):
    """Conversion of one array from PyTorch to JAX, and its inverse."""

    to_jax: Callable[[Array], Array]
    to_pytorch: Callable[[Array], Array]


def _fused_layout(parts: int) -> Layout:  # [parts*out in] <-> [in parts out]
    return Layout(
        lambda x: x.T.reshape(x.shape[1], parts, -1), lambda x: x.reshape(x.shape[0], -1).T
    )


def _patch_layout(axes: int) -> Layout:  # [out c (1) r q] <-> [(r q c) out]
    def to_jax(x):
        x = x.reshape(*x.shape[:2], *x.shape[-2:])
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def to_pytorch(x):
        side = round((x.shape[0] / 3) ** 0.5)
        x = x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
        return x if axes == 4 else x[:, :, None]

    return Layout(to_jax, to_pytorch)


IDENTITY = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
FUSED3 = _fused_layout(3)
FUSED2 = _fused_layout(2)
CONV2D = _patch_layout(4)
CONV3D = _patch_layout(5)
SQUEEZE = Layout(lambda x: x[0], lambda x: x[None])  # removes a first axis of size 1
VECTOR = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))


class Rule(NamedTuple):
    """Conversion of one parameter.

    Attributes:
      name: name in PyTorch. `{i}` is the number of a layer that is stacked in JAX, and `{n}` is the
        number of a layer that is not stacked.
      path: path in the JAX tree, separated by slashes; may contain `{n}`.
      layout: conversion of the array.
    """

    name: str
    path: str
    layout: Layout = IDENTITY


def linear(name: str, path: str, layout: Layout = LINEAR) -> list[Rule]:
    """Returns the rules of a linear layer, or of a convolution with stride equal to kernel size."""
    return [Rule(f"{name}.weight", f"{path}/kernel", layout), Rule(f"{name}.bias", f"{path}/bias")]


def linears(name: str, path: str, parts: Mapping[str, str]) -> list[Rule]:
    """Returns the rules of several linear layers.

    Args:
      name: common start of the PyTorch names.
      path: common start of the paths.
      parts: end of the path of each layer, by the end of its PyTorch name.
    """
    return [
        rule
        for part, module in parts.items()
        for rule in linear(f"{name}.{part}", f"{path}/{module}")
    ]


def norm(name: str, path: str) -> list[Rule]:
    """Returns the rules of a norm's weight and bias."""
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


def to_tree(state: Mapping[str, Array], rules: Sequence[Rule]) -> dict[str, Any]:
    """Converts PyTorch parameters or gradients to a JAX tree.

    Args:
      state: tensors by name. Each one is read only once, so the mapping may be lazy. Stacked layers
        must be numbered from 0 without gaps.
      rules: table of rules; the first one that matches a name is used.

    Returns:
      Nested dicts of contiguous arrays.

    Raises:
      KeyError: a name matches no rule, or a layer of a stack is missing.
    """
    flat, stacks = {}, {}
    for name in state:
        rule, numbers = _find_rule(name, rules)
        path = rule.path.format(**numbers)
        value = rule.layout.to_jax(state[name])
        if "i" in numbers:
            stacks.setdefault(path, {})[int(numbers["i"])] = value
        else:
            flat[path] = np.ascontiguousarray(value)
    for path, layers in stacks.items():
        if sorted(layers) != list(range(len(layers))):
            raise KeyError(
                f"{path} has layers {sorted(layers)}, but they must be numbered from 0 without gaps"
            )
        flat[path] = np.stack([layers.pop(i) for i in sorted(layers)])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


class LeafSlice(NamedTuple):
    """The part of a JAX leaf that corresponds to one PyTorch tensor.

    Attributes:
      path: path of the leaf.
      layer: index along the first axis of a stack; None if the leaf is not stacked.
      layout: conversion of the array.
    """

    path: str
    layer: int | None
    layout: Layout

    def to_pytorch(self, leaf: Array) -> Array:
        """Converts this part of the leaf to a contiguous PyTorch tensor."""
        part = leaf if self.layer is None else leaf[self.layer]
        return np.ascontiguousarray(self.layout.to_pytorch(np.asarray(part)))


def pytorch_names(
    shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]
) -> Iterator[tuple[str, LeafSlice]]:
    """Yields the PyTorch name and the leaf slice of each tensor. This is the inverse of `to_tree`.

    Args:
      shapes: shapes of the leaves of a JAX tree, by path (separated by slashes).
      rules: table of rules; the first one that matches a path is used.

    Raises:
      KeyError: a path matches no rule.
    """
    for path, shape in shapes.items():
        rule, numbers = _find_rule(path, rules, "path")
        if "{i}" in rule.name:
            for i in range(shape[0]):
                yield rule.name.format(i=i, **numbers), LeafSlice(path, i, rule.layout)
        else:
            yield rule.name.format(**numbers), LeafSlice(path, None, rule.layout)


def _find_rule(
    text: str, rules: Sequence[Rule], field: str = "name"
) -> tuple[Rule, dict[str, str]]:
    for rule in rules:
        pattern = re.escape(getattr(rule, field))
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", pattern)
        if match := re.fullmatch(pattern, text):
            return rule, match.groupdict()
    raise KeyError(f"no rule for the parameter {text}")
