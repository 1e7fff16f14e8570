"""Finds options of the masked modeling stages that have no effect because of other options."""

from collections.abc import Mapping
from typing import Any

from invnext_jax.models import decoder, predictor
from invnext_jax.objectives import masks

# Losses that need the teacher's output, but not its tapped layers.
_WITHOUT_TAPS = {"align_pooled"}


def find_unused(stage: Any, config: Any) -> dict[str, str]:
    """Returns the options without effect, with the reasons; see `Stage.unused_options`.

    Args:
      stage: a `MaskedModelingStage`.
      config: the run's config, which has passed the checks.
    """
    unused = _unused_mask_options(config.mask) | _unused_sources(config)
    groups = stage.param_groups(config)
    for name, module in (("predictor", predictor), ("decoder", decoder)):
        if name in groups:
            unused |= module.unused_options(config)
        else:
            reason = f"no active loss needs the {name}: {_activate(stage, name)}"
            unused |= _whole_section(config, name, reason)
    if "predictor" not in groups:
        reason = f"no active loss predicts patches: {_activate(stage, 'predictor')}"
        unused |= {"mask.predicted": reason, "mask.context_frames": reason}
    unused |= _unused_teacher(stage, config)
    if "target" in config:
        unused |= _unused_target(config)
    return unused


def needs_taps(stage: Any, config: Any) -> bool:
    """Returns whether a loss or the target needs the tapped layers of the image teacher."""
    compared = {name for name in stage.active_losses(config) if stage.losses[name].needs_teacher}
    return bool(compared - _WITHOUT_TAPS) or ("target" in config and config.target.kind == "image")


def _unused_sources(config: Any) -> dict[str, str]:
    if not config.init_from:
        reason = "config.init_from is not set: set it to the workdir of a run"
        return {"init_parts": reason, "init_from_unfinished": reason}
    if config.init_from.endswith(".safetensors"):
        reason = "config.init_from is an export, which always counts as finished: remove the option"
        return {"init_from_unfinished": reason}
    return {}


def _unused_teacher(stage: Any, config: Any) -> dict[str, str]:
    active, change = stage.active_losses(config), "set config.mask.kind to 'semantic'"
    compared = [name for name, loss in stage.losses.items() if loss.needs_teacher]
    if compared:
        change = " or ".join(f"config.loss.{name}" for name in compared)
        change = f"set {change} above 0, or config.mask.kind to 'semantic'"
    if not stage.needs_teacher(config):
        if "target" in config:
            change += ", or config.target.kind to 'image'"
        unused = _whole_section(
            config, "teacher", f"no loss, mask or target needs the teacher: {change}"
        )
        if "target" not in config:
            reason = f"the run has no frozen network: {change}"
            unused["quantize_frozen"] = reason
        return unused
    if {name for name in active if stage.losses[name].needs_teacher} - _WITHOUT_TAPS:
        return {}
    reason = "no active loss compares features with the teacher's intermediate layers"
    reason += ": set config.loss.align_tokens above 0" if compared else ": remove the option"
    return {"teacher.taps": reason, "teacher.tap_interval": reason}


def _unused_target(config: Any) -> dict[str, str]:
    kind, unused = config.target.kind, {}
    if kind != "momentum":
        reason = f"config.target.kind is {kind!r}: set it to 'momentum'"
        unused["target.momentum"] = reason
    if kind == "image":
        reason = "config.target.kind is 'image': set it to 'frozen' or 'momentum'"
        unused["target.drop_path"] = reason
    elif not config.encoder.drop_path:
        unused["target.drop_path"] = "config.encoder.drop_path is 0: set it above 0"
    return unused


def _activate(stage: Any, module: str) -> str:
    names = [name for name, loss in stage.losses.items() if module in loss.modules]
    return f"set {' or '.join(f'config.loss.{name}' for name in names)} above 0"


def _whole_section(config: Any, section: str, reason: str) -> Mapping[str, str]:
    return {f"{section}.{name}": reason for name in config[section]}


def _unused_mask_options(settings: Any) -> dict[str, str]:
    """Returns the options of `config.mask` that the kind of mask does not use, with the reason."""
    unused = {}
    for name in dict.fromkeys(name for mask in masks.REGISTRY.values() for name in mask.options):
        kinds = [repr(kind) for kind, mask in masks.REGISTRY.items() if name in mask.options]
        if repr(settings.kind) not in kinds:
            unused[f"mask.{name}"] = (
                f"config.mask.kind={settings.kind!r} does not read it: set config.mask.kind to "
                f"{' or '.join(kinds)}"
            )
    return unused
