"""Loads sweep files: Python files with functions that yield the arms of a sweep."""

import dataclasses
import importlib.util
import inspect
import math
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.field_checks import MAX_NAME, NAME, Fields, line
from invnext_jax.sweeps.arms import Arm, Chain, Column, Step, make_arm, with_seeds

PREFIX = "sweep"
# Types of the fields of an arm, and their descriptions.
_FIELDS: Sequence[tuple[str, Any, str]] = (
    ("name", str, "text"),
    ("group", str, "text"),
    ("seed", int | None, "an integer or None"),
    ("is_baseline", bool, "True or False"),
    ("reference", Mapping, "a dict from titles of columns to numbers"),
)
# Readers of the folder of a sweep accept no other names.
_NAMES: Fields = {"name": NAME, "group": line(0, MAX_NAME)}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The arms of a sweep and the columns of its table.

    Attributes:
      source: the file and the sweep, such as "configs/sweeps/paper.py:table1a".
      arms: the arms, one for each seed.
      columns: columns by title; {} for all values of the evaluations.
    """

    source: str
    arms: tuple[Arm, ...]
    columns: Mapping[str, Column]

    def find_columns(self) -> dict[str, Column]:
        """Returns the columns of the steps of the sweep.

        Raises:
          UserError: a column that is not optional has an unknown step.
        """
        steps = dict.fromkeys(step.name for arm in self.arms for step in arm.steps)
        for title, column in self.columns.items():
            if column.step not in steps and not column.optional:
                raise UserError(
                    f"the column {title!r} of {self.source} has the step {column.step!r}, which is "
                    f"not one of {', '.join(steps)}: correct it, or set optional=True if other "
                    "sweeps of the file have this step"
                )
        return {title: c for title, c in self.columns.items() if c.step in steps}


def load_sweep(source: str, seeds: Sequence[int] = ()) -> Sweep:
    """Calls a function of a sweep file and returns its arms.

    Args:
      source: "<file>" or "<file>:<argument>,...", whose function `sweep` is called, or
        "<file>:<name>,<argument>,...", which calls `sweep_<name>`. Arguments are strings.
      seeds: seeds for which the arms without a seed are repeated; () keeps the seeds of the
        configs.

    Raises:
      UserError: the file or the function does not exist, what the function returns are not arms, a
        field of an arm is invalid, two arms have the same name and seed, or two arms of a group are
        the baseline.
    """
    path, _, rest = source.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"there is no sweep file {path!r}: see the folder configs/sweeps")
    module = _import_file(path)
    function, arguments = _find_function(module, path, rest.split(",") if rest else [])
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UserError(
            f"{source} has arguments that {function.__name__} does not accept ({error}): see {path}"
        ) from error
    steps, columns = getattr(module, "CHAIN", ()), getattr(module, "COLUMNS", {})
    _check_types(path, steps, columns)
    try:
        arms = [_as_arm(source, steps, found) for found in _call(source, function, arguments)]
    except ValueError as error:  # an unknown variant
        raise UserError(f"{source}: {error}") from error
    arms = with_seeds(arms, seeds) if seeds else arms
    _check_arms(source, arms)
    for arm in arms:
        _check_reference(source, arm, columns)
    return Sweep(source, tuple(arms), dict(columns))


def _check_types(path: str, steps: Any, columns: Any) -> None:
    if not isinstance(steps, Sequence) or not all(isinstance(step, Step) for step in steps):
        raise UserError(f"CHAIN in {path} is not a chain of steps: make it with `chain`")
    if not isinstance(columns, Mapping) or not all(
        NAME[0](title) and isinstance(column, Column) for title, column in columns.items()
    ):
        raise UserError(
            f"COLUMNS in {path} must be a dict from titles to `Column`; a title is {NAME[1]}"
        )


def _call(source: str, function: types.FunctionType, arguments: Sequence[str]) -> Iterable[Any]:
    found = function(*arguments)
    if isinstance(found, str | Mapping) or not isinstance(found, Iterable):
        raise UserError(
            f"{function.__name__} of {source} returns {type(found).__name__} instead of arms: "
            "let it yield them, or return a list"
        )
    return found


def _as_arm(source: str, steps: Chain, found: Any) -> Arm:
    if isinstance(found, Arm):
        return found
    if not isinstance(found, Mapping):
        raise UserError(
            f"{source} yields {found!r}, which is not an arm: yield a dict of overrides or "
            "`make_arm(...)`"
        )
    return make_arm(steps, found)


def _import_file(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"_sweep_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _find_function(
    module: types.ModuleType, path: str, words: Sequence[str]
) -> tuple[types.FunctionType, Sequence[str]]:
    """Returns the function of a sweep file that the words after the colon select, and the rest."""
    functions = {
        key.removeprefix(PREFIX).removeprefix("_"): value
        for key, value in vars(module).items()
        if (key == PREFIX or key.startswith(f"{PREFIX}_")) and callable(value)
    }
    if words and words[0] in functions:
        return functions[words[0]], words[1:]
    if "" in functions:
        return functions[""], words
    names = ", ".join(f"{path}:{key}" for key in functions) or "none"
    raise UserError(
        f"there is no sweep {','.join(words)!r} in {path}: choose one of these: {names}"
    )


def _check_arms(source: str, arms: Sequence[Arm]) -> None:
    if not arms:
        raise UserError(f"{source} has no arms: its function must yield at least one")
    for arm in arms:
        _check_fields(source, arm)
    keys = [(arm.group, arm.name, arm.seed) for arm in arms]
    for arm, key in zip(arms, keys, strict=True):
        if keys.count(key) > 1:
            seed = "" if arm.seed is None else f" with seed {arm.seed}"
            raise UserError(f"{source} has two arms named {arm.name!r}{seed}: rename one of them")
        if not arm.steps:
            raise UserError(f"the arm {arm.name!r} of {source} has no steps: define CHAIN")
        names = [step.name for step in arm.steps]
        if len(set(names)) < len(names):
            raise UserError(f"the arm {arm.name!r} of {source} has two steps of the same name")
    baselines: dict[str, str] = {}
    for arm in arms:
        if arm.is_baseline and baselines.setdefault(arm.group, arm.name) != arm.name:
            raise UserError(
                f"{source} has two baselines in one table, {baselines[arm.group]!r} and "
                f"{arm.name!r}: set is_baseline for one of them, or give them different groups"
            )


def _check_fields(source: str, arm: Arm) -> None:
    """Checks the types of the fields of an arm, so that the folder of the sweep can be read."""
    for name, kinds, expected in _FIELDS:
        value = getattr(arm, name)
        if not isinstance(value, kinds) or (kinds is not bool and isinstance(value, bool)):
            raise UserError(
                f"the arm {arm.name!r} of {source} has {name}={value!r}, which must be {expected}: "
                "correct it in the sweep file"
            )
    for name, (test, words) in _NAMES.items():
        if not test(getattr(arm, name)):
            raise UserError(
                f"an arm of {source} has {name}={getattr(arm, name)!r:.160}, which is not {words}: "
                "give it another one in the sweep file"
            )
    for title, value in arm.reference.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(title, str) or not is_number or not math.isfinite(value):
            raise UserError(
                f"the arm {arm.name!r} of {source} has the published value {title!r}: {value!r}, "
                "which must be a finite number for the title of a column: correct `reference`"
            )


def _check_reference(source: str, arm: Arm, columns: Mapping[str, Column]) -> None:
    """Checks that each published value belongs to a column, if the sweep file defines columns."""
    unknown = [title for title in arm.reference if columns and title not in columns]
    if unknown:
        raise UserError(
            f"the arm {arm.name!r} of {source} has a published value for {unknown[0]!r}, which is "
            f"not a column: choose one of {', '.join(columns)}, or add it to COLUMNS"
        )
