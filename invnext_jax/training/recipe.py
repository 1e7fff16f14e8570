"""The recipe of a run: number of steps and learning rates, computed from epochs and base rates.

A config specifies the recipe in units that depend neither on the batch size nor on the data:
epochs, and base learning rates for a batch of 256 clips. `resolve` converts them to steps and rates
once the config overrides have been applied and the number of videos is known. Steps and rates that
the config sets by hand are kept.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from invnext_jax.errors import UserError, check_minimums
from invnext_jax.training import optimizer

PAPER_VIDEOS = 1_100_000  # K-Mash, the paper's unlabeled training set
BASE_BATCH = 256  # batch size to which the base learning rates apply
UNSET = -1  # value of a field that is not set by hand and must be computed

# Fields that `resolve` computes if they are `UNSET`, and the fields that they are computed from.
SOURCES = {
    "total_steps": "epochs",
    "optimizer.warmup_steps": "optimizer.warmup_epochs",
    "optimizer.learning_rate": "optimizer.base_learning_rate",
    "optimizer.min_learning_rate": "optimizer.base_min_learning_rate",
}

# If an epoch has at least this many steps, their number is rounded down, as in the released code,
# which drops the last incomplete batch of each epoch. With fewer steps, this would drop more than
# one percent of the videos.
_MIN_WHOLE_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Steps and learning rates of a run.

    Attributes:
      videos: number of rows of all manifests.
      batch_size: clips per step, over all devices and microbatches.
      accumulate: number of microbatches that the batch is split into.
      repeats: number of clips sampled from a video each time it is decoded.
      total_steps: length of the run in steps.
      warmup_steps: steps of linear warm-up.
      learning_rate: peak learning rate.
      min_learning_rate: learning rate at the last step.
      set_by_hand: the keys of `SOURCES` that the config sets by hand.
    """

    videos: int
    batch_size: int
    accumulate: int
    repeats: int
    total_steps: int
    warmup_steps: int
    learning_rate: float
    min_learning_rate: float
    set_by_hand: tuple[str, ...]

    @property
    def epochs(self) -> float:
        """Number of clips in the run divided by the number of videos."""
        return self.total_steps * self.batch_size / self.videos

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and the number of epochs as a JSON-compatible dict."""
        tree = dataclasses.asdict(self)
        return tree | {"epochs": self.epochs, "set_by_hand": list(self.set_by_hand)}

    def describe(self) -> str:
        """Formats the recipe for the log."""
        warmup_epochs = self.warmup_steps * self.batch_size / self.videos
        micro = f" ({self.accumulate} microbatches of {self.batch_size // self.accumulate})"
        passes = f" ({self.epochs / self.repeats:.4g} times decoded)" if self.repeats > 1 else ""
        lines = [
            f"recipe: {self.total_steps:,} steps of {self.batch_size:,} clips"
            + (micro if self.accumulate > 1 else "")
            + f", {self.epochs:.4g} epochs of {self.videos:,} videos{passes}",
            f"  learning rate: {self.warmup_steps:,} steps ({warmup_epochs:.3g} epochs) of warm-up "
            f"to {self.learning_rate:.3g}, then cosine decay to {self.min_learning_rate:.3g}",
        ]
        if self.set_by_hand:
            names = ", ".join(self.set_by_hand)
            lines.append(f"  set as numbers, not from epochs or base rates: {names}")
        return "\n".join(lines)

    def warning(self) -> str:
        """Returns a warning if the run never reaches its peak learning rate, otherwise ""."""
        if self.warmup_steps < self.total_steps:
            return ""
        if self.total_steps == 1:
            return (
                "the only step of the run is the first one of the warm-up, so its learning rate is "
                "0: set config.optimizer.warmup_steps=0 to train in it"
            )
        return (
            f"the warm-up of {self.warmup_steps:,} steps does not end within the "
            f"{self.total_steps:,} steps of the run: set config.optimizer.warmup_steps"
        )


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks the options of the recipe.

    Raises:
      UserError: a value is out of range.
    """
    minimums = {"total_steps": 1, "optimizer.warmup_steps": 0}
    minimums |= {"optimizer.learning_rate": 0.0, "optimizer.min_learning_rate": 0.0}
    for name, source in SOURCES.items():
        value = _get(config, name)
        if value == UNSET:
            check_minimums(config, {source: 0})
            if name == "total_steps" and not config.epochs:
                raise UserError("config.epochs is 0: set it, or set config.total_steps")
        else:
            check_minimums(config, {name: minimums[name]})
        for field in (name, source):
            if not math.isfinite(_get(config, field)):
                raise UserError(f"config.{field}={_get(config, field)} must be a finite number")


def unused_options(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the epochs and base rates that have no effect because numbers are set, with reasons.

    Args:
      config: a config that is not resolved.
    """
    return {
        source: f"config.{name}={_get(config, name)} is set: add --config.{name}={UNSET}"
        for name, source in SOURCES.items()
        if _get(config, name) != UNSET
    }


def resolve(config: ml_collections.ConfigDict, videos: int) -> Recipe:
    """Computes the recipe of a config to which all overrides have been applied.

    An epoch has as many clips as all manifests have rows in total, regardless of
    `config.data.weights` and `config.data.repeats`. Learning rates follow the linear scaling rule:
    the base rate times batch size / 256.

    Args:
      config: the run's config.
      videos: number of rows of all manifests of the run.

    Raises:
      UserError: the final learning rate is above the peak, or the run is shorter than one step.
    """
    steps_per_epoch = videos / config.batch_size
    if steps_per_epoch >= _MIN_WHOLE_STEPS:
        steps_per_epoch = videos // config.batch_size
    values = {
        "total_steps": round(config.epochs * steps_per_epoch),
        "optimizer.warmup_steps": round(config.optimizer.warmup_epochs * steps_per_epoch),
    }
    for name in ("optimizer.learning_rate", "optimizer.min_learning_rate"):
        values[name] = _get(config, SOURCES[name]) * (config.batch_size / BASE_BATCH)
    set_by_hand = tuple(name for name in SOURCES if _get(config, name) != UNSET)
    values |= {name: _get(config, name) for name in set_by_hand}
    if values["total_steps"] < 1:
        raise UserError(
            f"config.epochs={config.epochs} of {videos} videos is less than one step of "
            f"{config.batch_size} clips: increase it, or set config.total_steps"
        )
    recipe = Recipe(
        videos=videos,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        repeats=config.data.repeats,
        set_by_hand=set_by_hand,
        **{name.rpartition(".")[2]: value for name, value in values.items()},
    )
    if recipe.min_learning_rate > recipe.learning_rate:
        raise UserError(
            f"config.optimizer.min_learning_rate={recipe.min_learning_rate:.3g} exceeds "
            f"config.optimizer.learning_rate={recipe.learning_rate:.3g}: lower it"
        )
    return recipe


def resolve_config(
    config: ml_collections.ConfigDict, videos: int
) -> tuple[ml_collections.FrozenConfigDict, Recipe]:
    """Returns a frozen copy of a config with the steps and rates of its recipe, and the recipe.

    Args:
      config: the run's config, which is not modified.
      videos: see `resolve`.

    Raises:
      UserError: see `resolve`.
    """
    recipe = resolve(config, videos)
    resolved = {name: getattr(recipe, name.rpartition(".")[2]) for name in SOURCES}
    return _replace(config, resolved), recipe


def keep_saved(
    config: ml_collections.ConfigDict, saved: Mapping[str, Any]
) -> tuple[ml_collections.FrozenConfigDict, dict[str, Any]]:
    """Keeps the steps and rates of a run that was started with a version without epochs.

    Args:
      config: the run's config.
      saved: the config in the run's newest checkpoint.

    Returns:
      The config, in which numbers that are not set by hand are replaced by those in the
      checkpoint; and a dict with these numbers by name, which is {} if the checkpoint's version
      had epochs.
    """
    kept = {}
    if "epochs" not in saved:
        kept = {n: _get(saved, n) for n in SOURCES if _get(config, n) == UNSET}
    return _replace(config, kept), kept


def describe_change(
    saved: ml_collections.ConfigDict, config: ml_collections.ConfigDict, updates: int
) -> str:
    """Describes how the learning rate of a resumed run changes; "" if it does not change.

    Args:
      saved: the config of the checkpoint.
      config: the resolved config of this run.
      updates: number of updates completed in the checkpoint.
    """
    if all(_get(saved, name) == _get(config, name) for name in SOURCES):
        return ""
    old, new = (optimizer.make_schedule(c.optimizer, c.total_steps) for c in (saved, config))
    before = f"; the last step had {old(updates - 1):.2e}" if updates else ""
    rates = [f"{schedule(updates):.2e}" for schedule in (old, new)]
    if rates[0] == rates[1]:  # for example during the warm-up
        return ""
    return (
        f"config.total_steps changes from {saved.total_steps:,} to {config.total_steps:,}, and the "
        f"schedule with it: the learning rate of the next step jumps from {rates[0]} to "
        f"{rates[1]}{before}"
    )


def _get(config: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _replace(
    config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> ml_collections.FrozenConfigDict:
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    config.update_from_flattened_dict(dict(values))
    return ml_collections.FrozenConfigDict(config)
