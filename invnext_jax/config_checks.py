"""Checks of a run's config that hold for every stage; each breach is one sentence."""

import ml_collections

from invnext_jax.data import pipeline
from invnext_jax.errors import UserError
from invnext_jax.models import attention, dot_general, encoder, layers
from invnext_jax.monitoring import profiling, reporter
from invnext_jax.objectives import masks
from invnext_jax.training import step as step_lib


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks sizes, durations and names.

    Raises:
        UserError: a value that no run can have.
    """
    encoder.check_config(config)
    _check_durations(config)
    step_lib.check_config(config)
    reporter.check_config(config)
    profiling.check_config(config)
    masks.check_settings(config.mask, (config.data.size // config.encoder.patch) ** 2)
    _check_loss(config.loss)
    pipeline.check_config(config.data)
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype={config.dtype!r} must be 'float32' or 'bfloat16'")
    attention.check_config(config)
    layers.check_config(config)
    dot_general.check_config(config)


def _check_loss(weights: ml_collections.ConfigDict) -> None:
    for name, weight in weights.items():
        if weight < 0:
            raise UserError(f"config.loss.{name}={weight} must not be negative")
    if not any(weights.values()):
        names = ", ".join(f"config.loss.{name}" for name in weights)
        raise UserError(f"no loss is on: set one of {names} above 0")


def _check_durations(config: ml_collections.ConfigDict) -> None:
    least = {
        "checkpoint.every_steps": (config.checkpoint.every_steps, 1),
        "checkpoint.keep_last": (config.checkpoint.keep_last, 1),
        "checkpoint.every_minutes": (config.checkpoint.every_minutes, 0),
        "checkpoint.keep_every_steps": (config.checkpoint.keep_every_steps, 0),
        "checkpoint.keep_best": (config.checkpoint.keep_best, 0),
    }
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(f"config.{name}={value} must be at least {bound}")
    mode = config.checkpoint.best_mode
    if mode not in ("min", "max"):
        raise UserError(f"config.checkpoint.best_mode={mode!r} must be 'min' or 'max'")
    if config.checkpoint.keep_best and not config.checkpoint.best_metric:
        raise UserError("config.checkpoint.keep_best needs config.checkpoint.best_metric: name one")


# What changes the meaning of parameters without changing the shape of any.
_MEANING = {
    "encoder": ("heads", "patch", "size", "frames", "class_tokens"),
    "predictor": ("kind", "heads", "window", "last_layer"),
}


def check_source(
    config: ml_collections.ConfigDict, source: ml_collections.ConfigDict, step: int | None
) -> None:
    """Checks that parameters of another run mean the same in this one.

    Args:
        config: of this run.
        source: config of the run or export that `config.init_from` names; what it does not have is
            not compared.
        step: steps that it has done; None for an export, which counts as finished.

    Raises:
        UserError: it is not finished, or a field differs that no shape would tell.
    """
    unfinished = step is not None and step < source.total_steps
    if unfinished and not config.init_from_unfinished:
        raise UserError(
            f"the run config.init_from={config.init_from} has done {step} of {source.total_steps} "
            "steps: finish it, or set config.init_from_unfinished"
        )
    changed = [
        f"config.{group}.{name}: {source[group][name]!r} there, {config[group][name]!r} here"
        for group, names in _MEANING.items()
        for name in names
        if group in (config.init_parts or _MEANING)
        and name in source.get(group, {})
        and source[group][name] != config[group][name]
    ]
    if changed:
        raise UserError(
            f"the run config.init_from={config.init_from} was made with other sizes; take its "
            "values, or leave the part out of config.init_parts:\n  " + "\n  ".join(changed)
        )
