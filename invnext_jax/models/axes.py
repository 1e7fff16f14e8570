"""Naming the logical axes of parameters ("embed", "mlp"); the runtime maps them to a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn


class Boxed(nn.LogicallyPartitioned):
    """A parameter with the names of its axes.

    Linen's own box constrains the parameter where it is used, which fails for axes that do not
    divide by the mesh and for kernels that linen flattens. Where a parameter lies is decided once,
    by the sharding that it is given.
    """

    def unbox(self, apply_constraint: bool = True) -> Any:
        """The bare value."""
        del apply_constraint
        return self.value


def logical(init: Callable[..., Any], axes: Sequence[str | None]) -> Callable[..., Boxed]:
    """Makes `init` box what it returns with the names of its axes."""

    def boxed(*args: Any, **kwargs: Any) -> Boxed:
        return Boxed(init(*args, **kwargs), tuple(axes))

    return boxed
