"""Describes the arms of a sweep: chains of configs, dotted overrides, grids and seeds.

Sweep files in `configs/sweeps/` import this module. It imports no other library, so that reading a
sweep file is fast.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from invnext_jax.errors import UserError

Overrides = Mapping[str, Any]  # dotted name of an option -> value

_OF_ARM = ("name", "seed")  # keys of overrides that do not belong to a step


@dataclasses.dataclass(frozen=True)
class Step:
    """A training or an evaluation in a chain.

    Attributes:
      name: unique name in the chain.
      config: config file and variant, such as "configs/stage1.py:tiny". A config of
        `launch/evaluate.py` makes the step an evaluation.
      overrides: options that replace those of the config file.
      videos: number of videos that are read, if the manifests do not exist yet: for a training,
        (training videos,); for an evaluation, (training videos, held-out videos). Only the
        prediction of cost uses them.
    """

    name: str
    config: str
    overrides: Overrides = dataclasses.field(default_factory=dict)
    videos: tuple[int, ...] = ()

    def with_overrides(self, overrides: Overrides) -> "Step":
        """Returns a step with additional overrides, which replace earlier ones."""
        return dataclasses.replace(self, overrides={**self.overrides, **overrides})


Chain = tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a sweep's table: a chain of steps with all overrides, for one seed.

    Arms with the same name and different seeds are repetitions of one experiment. Equal steps of
    different arms run only once.

    Attributes:
      name: name of the row.
      steps: the steps. Each training starts from the training before it, and each evaluation uses
        the encoder of the last training before it.
      seed: value of `config.seed` in all steps; None keeps the seeds of the configs.
      is_baseline: whether the differences of the table are relative to this row.
      reference: published values by column of the table, in the unit of the column.
      group: title of the table that the row belongs to.
    """

    name: str
    steps: Chain
    seed: int | None = None
    is_baseline: bool = False
    reference: Mapping[str, float] = dataclasses.field(default_factory=dict)
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """Selects the values of a table's column. Empty fields select any value.

    Attributes:
      step: name of the step. For a training, the metric is one in its metrics.jsonl, and the last
        logged value is used.
      metric: see `evaluation.evaluators.evaluator.Row`.
      task: see `Row`.
      evaluator: see `Row`.
      input: see `Row`.
      optional: whether sweeps without the step do not have the column. For columns that several
        sweep files share; otherwise, an unknown step is an error.
    """

    step: str
    metric: str = ""
    task: str = ""
    evaluator: str = ""
    input: str = ""
    optional: bool = False


def chain(**steps: str | Step) -> Chain:
    """Makes a chain of steps from a config or a step for each name.

    For example, `chain(stage1="configs/stage1.py:tiny", world="configs/eval/world.py:tiny")` trains
    and then evaluates.
    """
    return tuple(
        dataclasses.replace(step, name=name) if isinstance(step, Step) else Step(name, step)
        for name, step in steps.items()
    )


def grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the overrides for all combinations of the values of some options.

    Args:
      axes: values of each option, such as {"stage1.batch_size": (16, 32), "seed": (0, 1)}.

    Raises:
      UserError: the values of an option are not a sequence.
    """
    for name, values in axes.items():
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise UserError(f"the values {values!r} of {name} must be a sequence, such as (1, 2)")
    return product(*([{name: value} for value in values] for name, values in axes.items()))


def product(*lists: Iterable[Overrides]) -> list[dict[str, Any]]:
    """Returns all combinations of one element of each list. Later lists replace earlier values."""
    return [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*lists)
    ]


def make_arm(steps: Chain, overrides: Overrides, **fields: Any) -> Arm:
    """Makes an arm from a chain and overrides.

    Args:
      steps: the chain.
      overrides: values by "<step>.<option>". The keys "name" and "seed" set the fields of the arm.
        Without a name, the arm is named after the overrides.
      **fields: other fields of the arm.

    Raises:
      UserError: an override belongs to no step, or a field does not exist.
    """
    known = [field.name for field in dataclasses.fields(Arm) if field.name != "steps"]
    if unknown := [name for name in fields if name not in known]:
        raise UserError(
            f"make_arm has no argument {unknown[0]!r}: the fields of an arm are {', '.join(known)}"
        )
    own = {name: value for name, value in overrides.items() if name in _OF_ARM}
    options = {name: value for name, value in overrides.items() if name not in _OF_ARM}
    by_step: dict[str, dict[str, Any]] = {step.name: {} for step in steps}
    for name, value in options.items():
        step, _, option = name.partition(".")
        if step not in by_step or not option:
            raise UserError(
                f"the override {name!r} of a sweep must start with the name of a step "
                f"({', '.join(by_step)}) and a dot, or be one of {', '.join(_OF_ARM)}"
            )
        by_step[step][option] = value
    own.setdefault("name", describe_overrides(options))
    steps = tuple(step.with_overrides(by_step[step.name]) for step in steps)
    return Arm(steps=steps, **{**own, **fields})


def describe_overrides(overrides: Overrides) -> str:
    """Returns a name for overrides, with the last parts of the options where they are unique."""
    last = [name.rpartition(".")[2] for name in overrides]
    parts = [
        f"{short if last.count(short) == 1 else name}={value}"
        for (name, value), short in zip(overrides.items(), last, strict=True)
    ]
    return ", ".join(parts) or "default"


def with_seeds(arms: Iterable[Arm], seeds: Sequence[int]) -> list[Arm]:
    """Repeats the arms without a seed for each of the seeds."""
    return [
        dataclasses.replace(arm, seed=seed)
        for arm in arms
        for seed in (seeds if arm.seed is None else (arm.seed,))
    ]
