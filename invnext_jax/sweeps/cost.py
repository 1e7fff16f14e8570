"""Predicts the FLOPs, memory and time of the jobs of a sweep from shapes, without running them.

Times are those of the roofline (see `planning.plan`): no run is faster. Jobs whose configs have the
same shapes share a plan, and plans are kept in `plans.json` in the folder of the sweep.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from invnext_jax import atomic_file, json_file
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.planning import fitting, memory, plan
from invnext_jax.planning import flops as flops_lib
from invnext_jax.planning.devices import DEVICES
from invnext_jax.sweeps.expansion import ExpandedSweep, join_names
from invnext_jax.sweeps.status_table import count_noun
from invnext_jax.sweeps.step_config import Kind, StepConfig

PLANS = "plans.json"
_FORMAT = 1  # of the file
# Options that change neither the shapes nor the time of a step.
_NOT_SHAPES = (
    *("seed", "epochs", "total_steps", "init_from", "init_parts", "init_from_unfinished"),
    *("predictor.weights", "teacher.weights", "init_gain", "attention", "scan_unroll"),
    *("data.manifest", "data.by_source", "data.workers", "data.prefetch", "data.weights"),
    *("data.crop_scales", "data.sampling", "eval", "log", "checkpoint", "profile_steps"),
    *(f"optimizer.{name}" for name in ("base_learning_rate", "base_min_learning_rate")),
    *(f"optimizer.{name}" for name in ("learning_rate", "min_learning_rate")),
    *(f"optimizer.{name}" for name in ("warmup_epochs", "warmup_steps", "weight_decay")),
    *("target.momentum",),
)
# Fields of a plan that are kept.
_FIELDS = ("peak_bytes", "memory_bytes", "fits", "step_flops", "step_seconds")


@dataclasses.dataclass(frozen=True)
class Cost:
    """The predicted cost of a job.

    Attributes:
      flops: FLOPs of the whole job on all devices, without recomputation.
      peak_bytes: memory per device.
      memory_bytes: size of the memory of a device.
      hours: duration at the roofline.
      devices: number of devices.
      fits: whether it fits in the memory.
    """

    flops: float
    peak_bytes: float
    memory_bytes: float
    hours: float
    devices: int
    fits: bool

    @property
    def device_hours(self) -> float:
        """Duration times number of devices."""
        return self.hours * self.devices


def predict_costs(
    sweep: ExpandedSweep,
    configs: Mapping[str, StepConfig],
    device: str,
    devices: int,
    folder: Path | None = None,
) -> dict[str, Cost]:
    """Predicts the costs of all jobs.

    Args:
      sweep: the jobs.
      configs: the config of each job.
      device: a name in `planning.devices.DEVICES`.
      devices: number of devices of each job.
      folder: folder in which plans are kept; None to keep none.

    Raises:
      UserError: the device is unknown, or a config does not fit the mesh.
    """
    if device not in DEVICES:
        raise UserError(f"--device={device} must be one of {', '.join(DEVICES)}")
    plans = _PlanCache(folder / PLANS if folder else None)
    costs = {}
    for name, config in configs.items():
        if config.kind is Kind.TRAIN:
            steps = sweep.jobs[name].total_steps
            costs[name] = _predict_training(config, steps, device, devices, plans)
        else:
            sources = sweep.jobs[name].job.dependencies
            source = configs[sources[0]] if sources else None
            costs[name] = predict_evaluation(config, source, device, devices)
    return costs


class _PlanCache:
    """Plans by the hash of their inputs, in a JSON file that is written after each new plan."""

    def __init__(self, path: Path | None):
        self._path, self._plans = path, {}
        if path is not None and os.path.isfile(path):
            try:
                tree = json_file.read_object(path)
                self._plans = dict(tree["plans"]) if tree.get("format") == _FORMAT else {}
            except (UserError, KeyError, TypeError, ValueError):
                self._plans = {}

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the plan of a key, which is made if it does not exist."""
        if key not in self._plans:
            self._plans[key] = make()
            if self._path is not None:
                tree = {"format": _FORMAT, "plans": self._plans}
                atomic_file.write_text(self._path, json.dumps(tree, indent=1) + "\n")
        return self._plans[key]


def _predict_training(
    config: StepConfig, steps: int, device: str, devices: int, plans: _PlanCache
) -> Cost:
    def make() -> dict[str, Any]:
        made = plan.make_plan(config.config, device, config.training_videos(), devices=devices)
        return {field: made[field] for field in _FIELDS}

    key = json_file.hash_json([_shape_fields(config.config), device, devices])
    found = plans.get(key, make)
    return Cost(
        flops=steps * found["step_flops"],
        peak_bytes=found["peak_bytes"],
        memory_bytes=found["memory_bytes"],
        hours=steps * found["step_seconds"] / 3600,
        devices=devices,
        fits=found["fits"],
    )


def _shape_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the options that decide the cost of a step."""
    fields = run_metadata.flatten(run_metadata.config_to_json(config))
    return {
        name: value
        for name, value in fields.items()
        if not any(name == skipped or name.startswith(f"{skipped}.") for skipped in _NOT_SHAPES)
    }


def predict_evaluation(
    config: StepConfig, source: StepConfig | None, device: str, devices: int
) -> Cost:
    """Predicts the cost of running the encoder in an evaluation. The heads are not counted.

    Args:
      config: the evaluation.
      source: the training of the encoder; None if the encoder is from elsewhere, whose cost is
        unknown and counted as 0.
      device: see `predict_costs`.
      devices: see `predict_costs`.
    """
    limits = DEVICES[device]
    if source is None:
        return Cost(0.0, 0.0, limits.memory, 0.0, devices, True)
    run = source.config.copy_and_resolve_references()
    frames, size = config.config.data.frames, config.config.data.size
    run.data.update(frames=frames or run.encoder.frames, size=size or run.encoder.size)
    tokens = flops_lib.token_lengths(run)
    count = flops_lib.count_target_encoder(run, tokens)
    train, held_out = (*config.count_videos(), 0, 0)[:2]
    views = config.config.features.views
    clips = train * _count_passes(config.config) + held_out * views
    counts = {"encoder": count}
    flops = flops_lib.split_flops(counts, round(clips))
    per_clip = memory.working_bytes(run, tokens.patches + tokens.class_tokens)
    peak = 4.0 * _count_parameters(source.config) + config.config.batch_size / devices * per_clip
    return Cost(
        flops=sum(flops.values()),
        peak_bytes=peak,
        memory_bytes=limits.memory,
        hours=limits.product_seconds(flops) / devices / 3600,
        devices=devices,
        fits=peak < limits.memory,
    )


def _count_passes(config: ml_collections.ConfigDict) -> float:
    """Returns how often an evaluation encodes each training video."""
    passes = 1.0
    for name in config.evaluators:
        section = config.get(name, {})
        # Without augmentation, the tokens are stored and computed once.
        if "epochs" in section and section.get("augment", True):
            passes = max(passes, section.epochs)
    return passes


def _count_parameters(config: ml_collections.ConfigDict) -> int:
    """Returns the number of parameters of an encoder, without its small tables."""
    e = config.encoder
    layer = 4 * e.width**2 + 2 * e.width * e.mlp_width + 9 * e.width + e.mlp_width
    return e.depth * layer + 3 * e.patch**2 * e.width


def find_options(configs: Mapping[str, StepConfig], costs: Mapping[str, Cost], device: str) -> str:
    """Returns settings with which the jobs that do not fit do fit, as flags of launch/sweep.py.

    For the trainings of each step, the settings are those of the job that needs most memory.
    """
    largest: dict[str, str] = {}
    for name in sorted(costs, key=lambda name: costs[name].peak_bytes):
        if not costs[name].fits:
            largest[configs[name].step.name] = name
    flags = []
    for step, name in largest.items():
        config, devices = configs[name], costs[name].devices
        if config.kind is Kind.EVALUATE:
            flags.append(f"--set={step}.batch_size=1")
            continue
        fit = fitting.find_fit(config.config, device, devices, config.training_videos())
        if fit is None:
            return f"more than {devices} devices: increase --devices_per_job"
        flags += [f"--set={step}.{option}={value}" for option, value in fit.options.items()]
    return " ".join(flags)


def describe_costs(
    sweep: ExpandedSweep, configs: Mapping[str, StepConfig], costs: Mapping[str, Cost]
) -> str:
    """Returns a table of all jobs with their costs, and the total."""
    heads = ("job", "PFLOP", "GB per device", "hours", "device-hours", "arms")
    rows = []
    for name, cost in costs.items():
        shown = join_names(sweep.arm_names(name), most=2)
        step = configs[name].step.name
        used = f"{cost.peak_bytes / 1e9:.1f} of {cost.memory_bytes / 1e9:.0f}"
        used += "" if cost.fits else " TOO LARGE"
        numbers = _number(cost.flops / 1e15), used, _number(cost.hours), _number(cost.device_hours)
        rows.append((f"{name} ({step})", *numbers, shown))
    return _align([heads, *rows]) + "\n" + _describe_total(costs)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _describe_total(costs: Mapping[str, Cost]) -> str:
    total = sum(cost.device_hours for cost in costs.values())
    flops = sum(cost.flops for cost in costs.values())
    return (
        f"{count_noun(len(costs), 'job')}: {flops / 1e18:.4g} EFLOP, {total:,.4g} device-hours at "
        "the roofline; measured runs take longer"
    )


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def check_fit(configs: Mapping[str, StepConfig], costs: Mapping[str, Cost], device: str) -> None:
    """Checks that all jobs fit in the memory of their devices.

    Raises:
      UserError: some do not. The message has settings with which they fit.
    """
    large = [name for name, cost in costs.items() if not cost.fits]
    if not large:
        return
    devices = costs[large[0]].devices
    shown = ", ".join(large[:3]) + (", ..." if len(large) > 3 else "")
    raise UserError(
        f"{len(large)} of {len(costs)} jobs do not fit in the memory of {devices} x {device} "
        f"({shown}); they fit with {find_options(configs, costs, device)}"
    )
