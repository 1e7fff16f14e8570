"""Finds options without effect in an evaluation. Setting one on the command line is an error."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from invnext_jax import config_checks
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import sources
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.evaluators.evaluator import Evaluator

# Options of `config.data` that are used only for training with augmentation.
_AUGMENTATION = {"crop", "crop_scales", "crop_area", "crop_aspect", "jitter", "flip"}
TRAINING = _AUGMENTATION | {"weights", "on_bad", "max_bad_share"}
# Options of the sections of evaluators that are used only with `augment`.
_SECTION_AUGMENTATION = ("repeats", "cutmix", "rand_augment")
# Options of the attentive probe that each kind of head does not read.
_UNUSED_BY_HEAD = {"mean_query": ("blocks",), "learned_query": ("width", "mlp")}


def check_overrides(
    config: Any, resolved: Any, overrides: Iterable[str], evaluators: Sequence[Evaluator]
) -> None:
    """Checks that the options that were set on the command line have an effect.

    Args:
      config: the config of the evaluation, as the user gave it.
      resolved: the same config with resolved sizes and manifests.
      overrides: dotted names of the options that were set on the command line.
      evaluators: the evaluators in `config.evaluators`.

    Raises:
      UserError: an option in `overrides` has no effect.
    """
    overrides = tuple(overrides)
    config_checks.check_overrides(config, overrides, find_unused(resolved, evaluators))
    has_manifests = any(registry.needs_manifests(evaluator, resolved) for evaluator in evaluators)
    if has_manifests and any(name.startswith("data.") for name in overrides):
        config_checks.check_overrides(config, overrides, _find_unused_by_sources(resolved))


def find_unused(config: Any, evaluators: Sequence[Evaluator]) -> dict[str, str]:
    """Returns a dict from each option without effect to the reason.

    An evaluator lists the options that only it and similar evaluators read in its attribute
    `options`: dotted names of options or of sections. Without the attribute, it may read the
    options of all evaluators.

    Args:
      config: the config of the evaluation.
      evaluators: the evaluators in `config.evaluators`.
    """
    running = [e for e in evaluators if config.controls or not e.is_baseline]
    names = tuple(name for name, _ in leaves(config.to_dict()))
    unused = _find_unused_data(config, running, names)
    unused |= _find_unused_in_sections(config, names)
    if any(not hasattr(evaluator, "options") for evaluator in running):
        return unused
    for name in names:
        readers = [e for e in registry.EVALUATORS.values() if _reads(e, name)]
        if readers and not any(_reads(evaluator, name) for evaluator in running):
            if any(reader in evaluators for reader in readers):
                unused[name] = "config.controls is False: set it to True"
            else:
                known = " or ".join(repr(reader.name) for reader in readers)
                unused[name] = f"config.evaluators does not contain {known}: add it"
        elif name.startswith("supervised.") and name != "supervised.steps":
            if not config.supervised.steps:
                unused[name] = "config.supervised.steps is 0: set it to the number of steps"
    return unused


def _find_unused_data(
    config: Any, running: Sequence[Evaluator], names: Sequence[str]
) -> dict[str, str]:
    """Returns the options of `config.data` that the evaluators do not read."""
    unused = {
        "data.manifest": "the videos are those of config.train_manifest and config.val_manifest: "
        "set them instead",
        "data.repeats": "each evaluator has its own number of clips: set "
        "config.attentive_probe.repeats for the attentive probe",
        "data.augment": "evaluators that augment clips have their own option: set, for example, "
        "config.attentive_probe.augment",
        "data.held_out": "evaluators hold out videos to select a head: set, for example, "
        "config.attentive_probe.held_out",
    }
    sections = [name for e in running for name in getattr(e, "options", (e.name,))]
    switches = [name for name in sections if _has_augment(config.get(name))]
    if any(config[name].augment for name in switches):
        return unused
    unused["data.short_side"] = (
        "the crop of an evaluated clip is the largest square of the frame, scaled to "
        "config.data.size: remove the option"
    )
    change = f"set config.{switches[0]}.augment=True" if switches else "remove the option"
    for name in names:
        parts = name.split(".")
        if parts[0] == "data" and (parts[1] in TRAINING or parts[-1] in _AUGMENTATION):
            unused[name] = (
                f"the clips of this evaluation are neither augmented nor sampled randomly: {change}"
            )
    return unused


def _find_unused_in_sections(config: Any, names: Sequence[str]) -> dict[str, str]:
    """Returns the options of evaluators without effect because of another option of the section."""
    unused = {}
    for name in names:
        section, _, option = name.partition(".")
        if not option or not _has_augment(config[section]):
            continue
        settings = config[section]
        if not settings.augment and is_part(option, _SECTION_AUGMENTATION):
            unused[name] = f"config.{section}.augment is False: set it to True"
        elif option in _UNUSED_BY_HEAD.get(settings.get("head"), ()):
            unused[name] = f"config.{section}.head is {settings.head!r}: change it"
    return unused


def _find_unused_by_sources(config: Any) -> dict[str, str]:
    """Returns the options of `config.data` that affect neither manifest."""
    rules = AccessRules.from_config(config.data)
    found = [
        sources.unused_options(config.data, manifest_lib.read_manifest(name, rules))
        for name in (config.train_manifest, config.val_manifest)
        if name
    ]
    shared = set.intersection(*map(set, found)) if found else ()
    return {name: found[0][name] for name in shared}


def _has_augment(section: Any) -> bool:
    return hasattr(section, "to_dict") and "augment" in section


def _reads(evaluator: Evaluator, name: str) -> bool:
    return is_part(name, getattr(evaluator, "options", ()))


def is_part(name: str, options: Iterable[str]) -> bool:
    """Returns whether an option is one of the given options, or in one of the given sections."""
    return any(name == option or name.startswith(f"{option}.") for option in options)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each option of a config."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
