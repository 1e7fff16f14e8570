"""Checks of a run's config that hold for every stage; each breach is one sentence."""

import math
from collections.abc import Mapping
from typing import Any

import ml_collections

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
    if config.data.frames < 1:
        raise UserError(f"config.data.frames={config.data.frames} must be at least 1")
    _check_durations(config)
    step_lib.check_config(config)
    reporter.check_config(config)
    profiling.check_config(config)
    masks.check_settings(config.mask, (config.data.size // config.encoder.patch) ** 2)
    _check_loss(config.loss)
    _check_clips(config.data, "")
    _check_sources(config.data)
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype={config.dtype!r} must be 'float32' or 'bfloat16'")
    attention.check_config(config)
    layers.check_config(config)
    dot_general.check_config(config)
    _check_data(config.data)


# What `config.data.by_source` may give another value for a source.
BY_SOURCE = (
    *("sampling", "stride", "crop", "crop_scales", "crop_area", "crop_aspect", "jitter", "flip"),
)


def _check_sources(data: ml_collections.ConfigDict) -> None:
    for source, own in data.by_source.items():
        if not isinstance(own, Mapping | ml_collections.ConfigDict):
            raise UserError(f"config.data.by_source.{source}={own!r} must be a dict of fields")
        for name, value in own.items():
            field = f"config.data.by_source.{source}.{name}"
            if name not in BY_SOURCE:
                raise UserError(f"{field}: only {', '.join(BY_SOURCE)} can differ by source")
            kind = type(data[name])
            if not isinstance(value, (tuple, list) if kind in (tuple, list) else kind):
                raise UserError(f"{field}={value!r} must be a {kind.__name__}")
        fields = {name: own.get(name, data[name]) for name in BY_SOURCE}
        _check_clips(fields, f"by_source.{source}.")


def _check_clips(data: Mapping[str, Any], prefix: str) -> None:
    choices = {"sampling": ("sparse", "dense"), "crop": ("multi_scale", "random_resized")}
    for name, known in choices.items():
        if data[name] not in known:
            raise UserError(f"config.data.{prefix}{name}={data[name]!r} must be one of {known}")
    bounds = {"stride": (1, math.inf), "crop_area": (1e-3, 1), "crop_aspect": (1e-2, 1e2)}
    for name, (least, most) in bounds.items():
        value = data[name]
        if len(value) != 2 or not least <= value[0] <= value[1] <= most:
            raise UserError(
                f"config.data.{prefix}{name}={value} must be two numbers, the smaller one first, "
                f"from {least} to {most}"
            )
    if any(stride != int(stride) for stride in data["stride"]):
        raise UserError(
            f"config.data.{prefix}stride={data['stride']} must be whole numbers of frames"
        )
    scales = data["crop_scales"]
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise UserError(
            f"config.data.{prefix}crop_scales={scales} must be shares of the short side, each "
            "above 0 and at most 1"
        )
    jitter = data["jitter"]
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise UserError(
            f"config.data.{prefix}jitter={jitter} must be four numbers (brightness, contrast, "
            "saturation, hue), none negative, hue at most 0.5"
        )


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
        "data.workers": (config.data.workers, -1),
        "data.prefetch": (config.data.prefetch, 1),
        "data.repeats": (config.data.repeats, 1),
    }
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(f"config.{name}={value} must be at least {bound}")
    mode = config.checkpoint.best_mode
    if mode not in ("min", "max"):
        raise UserError(f"config.checkpoint.best_mode={mode!r} must be 'min' or 'max'")
    if config.checkpoint.keep_best and not config.checkpoint.best_metric:
        raise UserError("config.checkpoint.keep_best needs config.checkpoint.best_metric: name one")


def _check_data(data: ml_collections.ConfigDict) -> None:
    if data.on_bad not in ("drop", "fail"):
        raise UserError(f"config.data.on_bad={data.on_bad!r} must be 'drop' or 'fail'")
    if not 0 <= data.max_bad_share <= 1:
        share = data.max_bad_share
        raise UserError(f"config.data.max_bad_share={share} must lie between 0 and 1")
    if data.clip_seconds <= 0:
        raise UserError(f"config.data.clip_seconds={data.clip_seconds} must be positive")
    if not data.manifest:
        raise UserError("config.data.manifest is empty: name the CSV file that lists the videos")


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
