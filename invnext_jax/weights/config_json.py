"""What must stand in the config.json of a published model, so that ours computes the same."""

from collections.abc import Mapping, Sequence
from typing import Any

from invnext_jax.errors import UserError


def require_type(config: Mapping[str, Any], kind: str, types: Sequence[str]) -> None:
    """Checks that config.json is of one of the model types that a kind of ours is read from.

    Raises:
      UserError: it is of another.
    """
    found = config.get("model_type")
    if found not in types:
        raise UserError(
            f"config.json has model_type={found!r}, but {kind} is read from {' or '.join(types)}: "
            "name another kind or another checkpoint"
        )


def require(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Checks values that we build in but one way; what is absent is taken to have it.

    Raises:
      UserError: another value.
    """
    for name, wanted in fixed.items():
        if config.get(name, wanted) != wanted:
            raise UserError(
                f"config.json has {name}={config[name]!r}, but only {wanted!r} is built here: "
                "take another checkpoint"
            )
