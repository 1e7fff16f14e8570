"""Config checks that are the same for all stages.

Each group of options is checked by the module that uses it. Each stage checks its own options. The
same modules list the options that have no effect. If the command line sets such an option, the run
ends before its first step.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from invnext_jax import online_evaluation
from invnext_jax.checkpointing import retention
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError, check_minimums
from invnext_jax.models import attention, dot_general, encoder, scan
from invnext_jax.monitoring import profiling, reporter
from invnext_jax.training import jax_options, mesh_checks, optimizer, recipe
from invnext_jax.training import step as step_lib

_SIZES = ("width", "depth", "heads", "mlp_width")
_AT_LEAST_1 = (
    *(f"encoder.{name}" for name in (*_SIZES, "patch", "size", "frames", "pool_heads")),
    *("encoder.pool_width", *(f"predictor.{name}" for name in (*_SIZES, "window"))),
    *("decoder.depth", "decoder.noise_draws", "decoder.chunks", "decoder.width", "data.short_side"),
)


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks the options that all stages share.

    Raises:
      UserError: an option has an invalid value, or JAX draws other random numbers than by default.
    """
    jax_options.check_options()
    _check_finite(config.to_dict())
    check_minimums(config, {name: 1 for name in _AT_LEAST_1} | {"encoder.class_tokens": 0})
    if config.init_gain <= 0:
        raise UserError(f"config.init_gain={config.init_gain} must be above 0")
    encoder.check_config(config)
    retention.check_config(config.checkpoint)
    step_lib.check_config(config)
    recipe.check_config(config)
    optimizer.check_config(config.optimizer)
    reporter.check_config(config)
    profiling.check_config(config)
    pipeline.check_config(config.data)
    dot_general.check_config(config)
    attention.check_config(config)
    scan.check_config(config)
    online_evaluation.check_config(config)
    saving = config.checkpoint
    if saving.keep_best and saving.best_metric.startswith("eval/") and not config.eval.every_steps:
        raise UserError(
            f"config.checkpoint.best_metric={saving.best_metric!r} is not logged, because "
            "config.eval.every_steps is 0: set it to a number of steps, or select another metric"
        )
    if saving.keep_best and saving.best_metric.startswith("eval/") and saving.best_mode == "min":
        raise UserError(
            "config.checkpoint.best_mode='min' would keep the checkpoints with the lowest "
            f"{saving.best_metric}, which are the worst: set it to 'max'"
        )


def _check_finite(tree: Any, name: str = "config") -> None:
    """Raises `UserError` if a number in a config is infinite or not a number."""
    if isinstance(tree, float) and not math.isfinite(tree):
        raise UserError(f"{name}={tree} must be a finite number")
    items = tree.items() if isinstance(tree, Mapping) else ()
    for field, value in items:
        _check_finite(value, f"{name}.{field}")
    for value in tree if isinstance(tree, tuple | list) else ():
        _check_finite(value, name)


def unused_options(config: ml_collections.ConfigDict, stage: Any) -> dict[str, str]:
    """Returns the options that have no effect in a run.

    Args:
      config: a config that has passed the checks and is not resolved by `recipe.resolve_config`.
      stage: the stage of the run.

    Returns:
      A dict from the dotted name of an option to a clause with the reason and what to change.
    """
    unused = recipe.unused_options(config) | retention.unused_options(config.checkpoint)
    unused |= mesh_checks.unused_options(config)
    return unused | online_evaluation.unused_options(config) | stage.unused_options(config)


def check_overrides(
    config: ml_collections.ConfigDict, overrides: Iterable[str], unused: Mapping[str, str]
) -> None:
    """Checks that the options that were set on the command line have an effect.

    Args:
      config: the run's config.
      overrides: dotted names of the options that were set on the command line.
      unused: options without effect and the reasons, such as the output of `unused_options`.

    Raises:
      UserError: an option in `overrides` has no effect.
    """
    for name in overrides:
        if name in unused:
            value = config
            for part in name.split("."):
                value = value[part]
            shown = value if isinstance(value, int | float) else repr(value)
            raise UserError(f"config.{name}={shown} is not used, because {unused[name]}")
