"""Naming the logical axes of parameters ("embed", "mlp") and activations ("batch", "sequence").

The runtime maps them to a mesh; where there is none, the names of activations mean nothing. The
number of tokens need not divide by the mesh: the compiler pads.

Shape key: b batch, n tokens, d width, h heads, e head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

Lead = tuple[str | None, str | None]  # names of a token stream's first two axes
TOKENS: Lead = (
    "batch",
    "sequence",
)  # long streams: clips over some devices, their tokens over others
IMAGES: Lead = ("images", None)  # many short streams


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


def shard_tokens(x_bnd: jax.Array, lead: Lead = TOKENS) -> jax.Array:
    """Splits a token stream over the devices, each with its own clips and tokens."""
    return nn.with_logical_constraint(x_bnd, (*lead, None))


def replicate_tokens(x_bnd: jax.Array) -> jax.Array:
    """Gives every device all tokens of its clips: picking and joining tokens would else move them.

    Stands where a split stream begins and ends, so that each costs one gathering.
    """
    return nn.with_logical_constraint(x_bnd, (*(None,) * (x_bnd.ndim - 3), "batch", None, None))


def shard_attention_inputs(
    q_bnhe: jax.Array, k_bnhe: jax.Array, v_bnhe: jax.Array, lead: Lead = TOKENS
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits queries by their tokens, and gathers the keys and values that all of them look at."""
    names = ((*lead, "heads", None), (lead[0], None, "heads", None), (lead[0], None, "heads", None))
    parts = zip((q_bnhe, k_bnhe, v_bnhe), names, strict=True)
    return tuple(nn.with_logical_constraint(x, axes) for x, axes in parts)
