"""Options that the command line of a sweep sets in several steps (--set)."""

import ast
import dataclasses
from typing import Any

from invnext_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Setting:
    """An option that the command line of a sweep sets in several steps.

    Attributes:
      scope: "train" for all trainings, "eval" for all evaluations, or the name of a step.
      option: dotted name of the option.
      text: the value as text.
    """

    scope: str
    option: str
    text: str

    def __str__(self) -> str:
        """Returns the flag."""
        return f"--set={self.scope}.{self.option}={self.text}"


def parse_value(setting: Setting, default: Any) -> Any:
    """Converts the text of a setting to the type of the option's default."""
    if isinstance(default, str):
        return setting.text
    try:
        value = ast.literal_eval(setting.text)
    except (ValueError, SyntaxError) as error:
        raise UserError(
            f"{setting} is not a value of type {type(default).__name__}: see docs/options.md"
        ) from error
    return tuple(value) if isinstance(value, list) else value
