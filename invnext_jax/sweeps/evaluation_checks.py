"""Checks of evaluations that need no encoder, so that they run before any training."""

import functools
from collections.abc import Iterable, Mapping

import ml_collections

from invnext_jax import config_checks
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation import features, split_checks, unused_options
from invnext_jax.evaluation.evaluators import registry


def check_options(
    config: ml_collections.ConfigDict, overrides: Iterable[str], frames: int = 0
) -> None:
    """Checks the options of an evaluation, as `launch/evaluate.py` does.

    Args:
      config: the config of the evaluation.
      overrides: dotted names of the options that its command sets.
      frames: number of frames of the encoder; 0 if it is unknown. The options of the evaluators are
        then checked only if the config sets the number of frames.

    Raises:
      UserError: an option is invalid or has no effect.
    """
    evaluators = registry.find_evaluators(config.evaluators)
    registry.check_running(evaluators, config.controls)
    unused = unused_options.find_unused(config, evaluators)
    config_checks.check_overrides(config, overrides, unused)
    features.check_config(config)
    config = config.copy_and_resolve_references()
    config.data.frames = config.data.frames or frames
    for evaluator in evaluators if config.data.frames else ():
        evaluator.check_config(config)


def check_manifests(config: ml_collections.ConfigDict, manifests: Mapping[str, str]) -> None:
    """Checks that the manifests of an evaluation differ and have labels for its tasks.

    Args:
      config: the config of the evaluation.
      manifests: the existing manifests by option.

    Raises:
      UserError: they do not, or a manifest is invalid.
    """
    evaluators = registry.find_evaluators(config.evaluators)
    if not any(registry.needs_manifests(evaluator, config) for evaluator in evaluators):
        return
    found = {name: manifest_lib.find_manifests(manifests.get(name, "")) for name in _MANIFESTS}
    found |= {name: config[name] for name in ("tasks", "same_manifest", "data")}
    needs_labels = any(map(registry.needs_labels, evaluators))
    _check_labels(ml_collections.FrozenConfigDict(found), needs_labels)


def check_kept(
    arm: str,
    config: ml_collections.ConfigDict,
    training: ml_collections.ConfigDict,
    shared: ml_collections.ConfigDict,
) -> None:
    """Checks that the training of an evaluation keeps the checkpoints that its arm asks for.

    The options of checkpoints are not part of the hash of a training, so arms that differ only in
    them share one training.

    Args:
      arm: the name of the arm.
      config: the config of the evaluation.
      training: the config of the training in this arm.
      shared: the config of the training that runs.

    Raises:
      UserError: the evaluation is of several steps, and the options of checkpoints differ.
    """
    own, others = training.checkpoint, shared.checkpoint
    differ = [name for name in _KEPT if own[name] != others[name]]
    if config.steps and differ:
        name = f"checkpoint.{differ[0]}"
        raise UserError(
            f"the arm {arm!r} sets {name}={own[differ[0]]} and evaluates the steps "
            f"{config.steps!r}, but shares its training with an arm that has "
            f"{name}={others[differ[0]]}: set the same value in both"
        )


# Options in `config.checkpoint` that decide which checkpoints remain.
_KEPT = ("every_steps", "keep_last", "keep_every_steps", "keep_best", "best_metric", "best_mode")
_MANIFESTS = ("train_manifest", "val_manifest")


@functools.cache  # many arms of a sweep have the same evaluation
def _check_labels(config: ml_collections.FrozenConfigDict, needs_labels: bool) -> None:
    split_checks.choose_tasks(config, needs_labels)
    split_checks.check_different(config)
