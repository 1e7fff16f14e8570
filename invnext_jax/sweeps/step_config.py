"""Loads the config of a step of a chain, applies overrides and makes the command line."""

import dataclasses
import enum
import functools
import importlib.util
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from invnext_jax import config_checks, init_source
from invnext_jax.data import held_out as held_out_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import video_io
from invnext_jax.errors import LABELS, UserError
from invnext_jax.evaluation import evaluation_data, unused_options
from invnext_jax.evaluation.evaluators import registry as evaluator_registry
from invnext_jax.planning import plan
from invnext_jax.stages import registry
from invnext_jax.sweeps import evaluation_checks
from invnext_jax.sweeps.arms import Step
from invnext_jax.sweeps.settings import Setting, parse_value
from invnext_jax.training import recipe as recipe_lib


class Kind(enum.Enum):
    """The script of a step. The value is the scope of settings for all steps of this kind."""

    TRAIN = "train"
    EVALUATE = "eval"


SCRIPTS = {Kind.TRAIN: "launch/main.py", Kind.EVALUATE: "launch/evaluate.py"}
# The option with the run or encoder that a step starts from, and the flag that sets it.
SOURCE_OPTIONS = {Kind.TRAIN: "init_from", Kind.EVALUATE: "checkpoint"}
NO_OPTION = "the config has no such option"
_SOURCE_FLAGS = {Kind.TRAIN: "--config.init_from", Kind.EVALUATE: "--checkpoint"}


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The config of a step.

    Attributes:
      step: the step.
      kind: its script.
      config: the config with all overrides. The run or encoder that the step starts from is not
        set, unless it is an override.
      overrides: the options that the command sets.
    """

    step: Step
    kind: Kind
    config: ml_collections.ConfigDict
    overrides: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The stage of a training, or "eval"."""
        return self.config.stage if self.kind is Kind.TRAIN else "eval"

    @property
    def own_source(self) -> str:
        """The run or encoder that the config specifies; "" if it specifies none."""
        return self.config[SOURCE_OPTIONS[self.kind]]

    def manifests(self) -> dict[str, str]:
        """Returns the manifests that the step reads, by option."""
        if self.kind is Kind.TRAIN:
            return {"data.manifest": self.config.data.manifest}
        return self._find_manifests(self.config)

    def other_manifests(self) -> dict[str, str]:
        """Returns the manifests of `eval` in a training, and of the evaluators' own sections."""
        if self.kind is Kind.TRAIN:
            settings = self.config.eval
            is_used = settings.every_steps and settings.manifest
            return {"eval.manifest": settings.manifest} if is_used else {}
        return {
            f"{section}.{name}": manifests
            for section, settings in self.config.items()
            if isinstance(settings, ml_collections.ConfigDict) and "train_manifest" in settings
            for name, manifests in self._find_manifests(settings).items()
        }

    def _find_manifests(self, settings: ml_collections.ConfigDict) -> dict[str, str]:
        """Returns the manifests of both splits in the config or in one of its sections."""
        root, names = self.config.data.root, ("train_manifest", "val_manifest")
        return {
            name: evaluation_data.join_root(root, settings[name])
            for name in names
            if settings[name]
        }

    def count_videos(self) -> tuple[int, ...]:
        """Returns the number of videos of each manifest, or the numbers that the step expects.

        Videos that are held out from a training are not counted.
        """
        names = list(self.manifests().values())
        held_out = self.config.data.held_out if self.kind is Kind.TRAIN else 0
        if names and all(map(manifests_exist, names)):
            return tuple(_count_rows(name, held_out) for name in names)
        return self.step.videos

    def training_videos(self) -> int:
        """Returns the number of videos of a training; that of the paper if it is unknown."""
        return (*self.count_videos(), recipe_lib.PAPER_VIDEOS)[0]

    def copy_sizes(self, training: "StepConfig | None" = None) -> "StepConfig":
        """Returns the step with the sizes that a training takes from its source.

        If the source is missing on this machine, the sizes are those of the config.

        Args:
          training: the training of the sweep that it starts from; None for none.

        Raises:
          UserError: see `init_source.copy_sizes`.
        """
        if self.kind is not Kind.TRAIN or not self.config.init_sizes:
            return self
        config = self.config.copy_and_resolve_references()
        if training is not None:
            init_source.copy_from(training.config.to_dict(), config, self.overrides)
        elif os.path.exists(self.own_source):
            config = init_source.copy_sizes(config, self.overrides, quiet=True)
        return dataclasses.replace(self, config=config)

    def command(self, workdir: Path, source: Path | None) -> tuple[str, ...]:
        """Returns the command of the step.

        Args:
          workdir: folder in which the command writes its outputs.
          source: workdir of the run that the step starts from; None for none.
        """
        flags = [f"--config={self.step.config}", f"--workdir={workdir}"]
        if source is not None:
            flags.append(f"{_SOURCE_FLAGS[self.kind]}={source}")
        flags += [f"--config.{name}={_write(value)}" for name, value in self.overrides.items()]
        return (sys.executable, SCRIPTS[self.kind], *flags)

    def check(self, source: str, training: "StepConfig | None" = None) -> None:
        """Runs the checks of the step's script that do not read the source.

        Args:
          source: path of the run or encoder that the step starts from; "" for none.
          training: the training of the sweep that it starts from; None for none.

        Raises:
          UserError: an option is invalid or has no effect.
        """
        config = self.config.copy_and_resolve_references()
        config[SOURCE_OPTIONS[self.kind]] = source
        if self.kind is Kind.TRAIN:
            plan.check_config(config, self.training_videos(), tuple(self.overrides))
            return
        frames = training.config.encoder.frames if training else 0
        evaluation_checks.check_options(config, self.overrides, frames)
        manifests = self.manifests()
        if all(map(manifests_exist, manifests.values())):
            evaluation_checks.check_manifests(config, manifests)


def manifests_exist(names: str) -> bool:
    """Returns whether local manifests exist; True for remote ones and rendered worlds."""
    return all(map(video_io.may_exist, manifest_lib.list_manifests(names)))


@functools.cache
def _count_rows(names: str, held_out: int) -> int:
    return held_out_lib.count_training_videos(manifest_lib.read_manifest(names), held_out)


def load_step(step: Step, seed: int | None, settings: Sequence[Setting] = ()) -> StepConfig:
    """Loads the config of a step and applies its overrides.

    Settings replace the overrides of the arm. `setting_checks` refuses those that replace what the
    arms vary. Settings for all steps of a kind are ignored by steps in which the option does not
    exist or has no effect.

    Args:
      step: the step.
      seed: value of `config.seed`; None keeps the value of the config file.
      settings: options of the command line.

    Raises:
      UserError: the config file or an option does not exist, or a value has the wrong type.
    """
    config, kind = _load_config(step.config), find_kind(step)
    if seed is not None and step.overrides.get("seed", seed) != seed:
        raise UserError(
            f"{step.name}.seed={step.overrides['seed']} and the seed {seed} of the arm differ: use "
            "the option 'seed' of the arm, or remove --seeds"
        )
    overrides = dict(step.overrides) | ({} if seed is None else {"seed": seed})
    _update(config, step, overrides)
    values = {}
    complete = config.copy_and_resolve_references()
    for setting in settings:
        shared = setting.scope == kind.value
        if (shared and _has_option(complete, setting.option)) or setting.scope == step.name:
            values[setting] = parse_value(setting, _get(complete, step, setting.option))
            _update(complete, step, {setting.option: values[setting]})
    # Whether an option has an effect may depend on the settings after it.
    for setting, value in values.items():
        if setting.scope == step.name or not unused_reason(complete, kind, setting.option):
            overrides[setting.option] = value
            _update(config, step, {setting.option: value})
    return StepConfig(step, kind, config, overrides)


def find_kind(step: Step) -> Kind:
    """Returns whether a step is a training or an evaluation."""
    return Kind.EVALUATE if "evaluators" in _read_config(step.config) else Kind.TRAIN


@functools.cache
def _read_config(source: str) -> ml_collections.ConfigDict:
    path, colon, variant = source.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"there is no config file {path!r}, which a sweep uses: see configs")
    spec = importlib.util.spec_from_file_location(f"_config_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(*[variant] if colon else [])
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def _load_config(source: str) -> ml_collections.ConfigDict:
    return _read_config(source).copy_and_resolve_references()


def _get(config: Any, step: Step, name: str) -> Any:
    if not _has_option(config, name):
        raise UserError(
            f"the step {step.name!r} of a sweep sets {name!r}, which is not an option of "
            f"{step.config}: see docs/options.md"
        )
    return functools.reduce(operator.getitem, name.split("."), config)


def _update(config: ml_collections.ConfigDict, step: Step, overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if isinstance(_get(config, step, name), ml_collections.ConfigDict):
            raise UserError(
                f"the step {step.name!r} of a sweep sets the section {name!r}: set an option of it"
            )
        if name in LABELS:
            raise UserError(
                f"the step {step.name!r} of a sweep sets {name}={value!r}, which has no effect: "
                f"choose the {name} in the path of its config, {step.config}"
            )
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the step {step.name!r} of a sweep sets {name}={value!r}, which has the wrong "
                f"type ({error}): see docs/options.md"
            ) from error


def unused_reason(config: ml_collections.ConfigDict, kind: Kind, option: str) -> str:
    """Returns why an option has no effect in a step, as a clause; "" if it has an effect."""
    if not _has_option(config, option):
        return NO_OPTION
    if kind is Kind.EVALUATE:
        evaluators = evaluator_registry.find_evaluators(config.evaluators)
        return unused_options.find_unused(config, evaluators).get(option, "")
    unused = config_checks.unused_options(config, registry.find_stage(config))
    return unused.get(option, "")


def _has_option(config: ml_collections.ConfigDict, option: str) -> bool:
    fields = config.to_dict()
    for part in option.split("."):
        if not isinstance(fields, Mapping) or part not in fields:
            return False
        fields = fields[part]
    return True


def _write(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)
