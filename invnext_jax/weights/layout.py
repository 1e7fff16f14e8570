"""Tables of rules between the names and layouts of PyTorch checkpoints and our parameter trees.

Torch keeps a linear layer as [out in] and each layer under a number; we keep [in out], and the
layers of a stack along a new first axis. A rule knows both directions, one tensor at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import numpy as np

Array = np.ndarray


class Layout(NamedTuple):
    """How one tensor is turned: `ours` makes our array of theirs, `theirs` is its inverse."""

    ours: Callable[[Array], Array]
    theirs: Callable[[Array], Array]


def _fused(parts: int) -> Layout:  # [parts*out in] <-> [in parts out]
    return Layout(
        lambda x: x.T.reshape(x.shape[1], parts, -1), lambda x: x.reshape(x.shape[0], -1).T
    )


def _patches(axes: int) -> Layout:  # [out c (1) r q] <-> [(r q c) out]
    def ours(x):
        x = x.reshape(*x.shape[:2], *x.shape[-2:])
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def theirs(x):
        side = round((x.shape[0] / 3) ** 0.5)
        x = x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
        return x if axes == 4 else x[:, :, None]

    return Layout(ours, theirs)


KEEP = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
FUSED3 = _fused(3)
FUSED2 = _fused(2)
CONV2D = _patches(4)
CONV3D = _patches(5)
SQUEEZE = Layout(lambda x: x[0], lambda x: x[None])  # a first axis of size 1
VECTOR = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1))


class Rule(NamedTuple):
    """One parameter of theirs and of ours.

    Attributes:
      name: theirs; `{i}` is the number of a layer that we stack, `{n}` a number that we keep.
      path: ours, with slashes; may hold `{n}`.
      layout: how the array is turned.
    """

    name: str
    path: str
    layout: Layout = KEEP


def linear(name: str, path: str, layout: Layout = LINEAR) -> list[Rule]:
    """The two rules of a linear layer, or of a convolution that is one."""
    return [Rule(f"{name}.weight", f"{path}/kernel", layout), Rule(f"{name}.bias", f"{path}/bias")]


def norm(name: str, path: str) -> list[Rule]:
    """The two rules of a norm."""
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


def to_tree(state: Mapping[str, Array], rules: Sequence[Rule]) -> dict[str, Any]:
    """Maps their tensors to our tree; works on gradients as well as on parameters.

    Args:
      state: tensors by their name; each is read once, so that files may be read lazily. Layers
        that are stacked must be numbered from 0 without a gap.
      rules: the table; the first rule that fits a name decides.

    Returns:
      Nested dicts of contiguous arrays.

    Raises:
      KeyError: no rule knows a name, or a layer is missing in a stack.
    """
    flat, stacks = {}, {}
    for name in state:
        rule, numbers = _find(name, rules)
        path = rule.path.format(**numbers)
        value = rule.layout.ours(state[name])
        if "i" in numbers:
            stacks.setdefault(path, {})[int(numbers["i"])] = value
        else:
            flat[path] = np.ascontiguousarray(value)
    for path, layers in stacks.items():
        if sorted(layers) != list(range(len(layers))):
            raise KeyError(f"{path} has layers {sorted(layers)}, not all from 0")
        flat[path] = np.stack([layers.pop(i) for i in sorted(layers)])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


class Source(NamedTuple):
    """Where a tensor of theirs comes from: our path, the layer of the stack, and how it is turned.

    `layer` is None for what is not stacked.
    """

    path: str
    layer: int | None
    layout: Layout

    def take(self, leaf: Array) -> Array:
        """Their tensor, contiguous, from our array."""
        part = leaf if self.layer is None else leaf[self.layer]
        return np.ascontiguousarray(self.layout.theirs(np.asarray(part)))


def names_of(
    shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]
) -> Iterator[tuple[str, Source]]:
    """Their names, in the order of our paths; the inverse of `to_tree`.

    Args:
      shapes: path with slashes -> shape, of our parameters.
      rules: the table; the first rule that fits a path decides.

    Raises:
      KeyError: no rule knows a path.
    """
    for path, shape in shapes.items():
        rule, numbers = _find(path, rules, "path")
        if "{i}" in rule.name:
            for i in range(shape[0]):
                yield rule.name.format(i=i, **numbers), Source(path, i, rule.layout)
        else:
            yield rule.name.format(**numbers), Source(path, None, rule.layout)


def _find(text: str, rules: Sequence[Rule], field: str = "name") -> tuple[Rule, dict[str, str]]:
    for rule in rules:
        pattern = re.escape(getattr(rule, field))
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", pattern)
        if match := re.fullmatch(pattern, text):
            return rule, match.groupdict()
    raise KeyError(f"no rule for the parameter {text}")
