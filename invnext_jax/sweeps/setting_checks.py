"""Checks that the options of --set have an effect and do not change what the arms vary."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from invnext_jax.errors import UserError
from invnext_jax.sweeps.arms import Arm, Step
from invnext_jax.sweeps.settings import Setting, parse_value
from invnext_jax.sweeps.step_config import NO_OPTION, StepConfig, find_kind, unused_reason


def check_conflicts(settings: Sequence[Setting], arms: Sequence[Arm]) -> None:
    """Checks that no setting replaces a value by which an arm differs from others.

    A setting may replace an override that all arms share, such as the path of a manifest. It may
    not replace one that is different in other arms or part of the arm's name, or the arm's seed:
    the rows of the table would have names that do not describe their jobs.

    Raises:
      UserError: a setting replaces such a value by another one.
    """
    for setting in settings:
        found = [
            (arm, step, _find_value(arm, step, setting)) for arm, step in _reach(setting, arms)
        ]
        for arm, step, value in found:
            if value is None or parse_value(setting, value) == value:
                continue
            others = [other for _, same, other in found if same.name == step.name]
            if (
                any(other != value for other in others)
                or _is_in_name(arm, step, setting.option, value)
                or (setting.option == "seed" and arm.seed is not None)
            ):
                raise UserError(
                    f"{setting} would replace {setting.option}={value} of the arm {arm.name!r}, "
                    "which the sweep varies: remove the flag, or change the sweep file"
                )


def _reach(setting: Setting, arms: Sequence[Arm]) -> list[tuple[Arm, Step]]:
    """Returns the steps in the scope of a setting, with their arms."""
    return [
        (arm, step)
        for arm in arms
        for step in arm.steps
        if setting.scope in (step.name, find_kind(step).value)
    ]


def _find_value(arm: Arm, step: Step, setting: Setting) -> Any:
    """Returns the value of the option that an arm sets; None if it sets none."""
    value = step.overrides.get(setting.option)
    if setting.option == "seed" and arm.seed is not None:
        value = arm.seed
    return tuple(value) if isinstance(value, list) else value


def _is_in_name(arm: Arm, step: Step, option: str, value: Any) -> bool:
    """Returns whether the name, as `arms.describe_overrides` makes it, has the value."""
    names = (option.rpartition(".")[2], f"{step.name}.{option}")
    return any(f"{name}={value}" in arm.name.split(", ") for name in names)


def check_effects(settings: Sequence[Setting], configs: Mapping[str, StepConfig]) -> None:
    """Checks that each setting has an effect in a step, and logs in which steps it has none.

    Raises:
      UserError: a setting has none.
    """
    for setting in settings:
        used = [c for c in configs.values() if setting.scope in (c.kind.value, c.step.name)]
        if any(setting.option in config.overrides for config in used):
            for step, reason in _find_steps_without_effect(setting, used).items():
                logging.warning("%s has no effect in the step %s: %s", setting, step, reason)
            continue
        reason = f"the sweep has no step {setting.scope!r}"
        if used:
            reason = unused_reason(used[0].config, used[0].kind, setting.option)
        raise UserError(f"{setting} has no effect, because {reason}: remove the flag")


def _find_steps_without_effect(setting: Setting, configs: Sequence[StepConfig]) -> dict[str, str]:
    """Returns the steps that have the option of a setting, but do not use it, with the reason."""
    found = {}
    for config in configs:
        if setting.option not in config.overrides:
            reason = unused_reason(config.config, config.kind, setting.option)
            if reason and reason != NO_OPTION:
                found[config.step.name] = reason
    return found
