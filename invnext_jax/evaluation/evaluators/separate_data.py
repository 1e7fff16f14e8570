"""Videos of an evaluator that differ from those of the rest of the evaluation.

The section of such an evaluator has the options `train_manifest` and `val_manifest`. If they are
empty, the evaluator uses those of the config.
"""

import os
from typing import Any

import ml_collections

from invnext_jax.data import video_io
from invnext_jax.evaluation import split_checks
from invnext_jax.evaluation.evaluation_data import SPLITS, EvaluationData
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.json_file import hash_json


def has_manifests(settings: Any) -> bool:
    """Returns whether a section of the config has manifests."""
    return any(settings[f"{split}_manifest"] for split in SPLITS)


def hash_data(settings: Any, config: Any) -> str:
    """Returns a hash of the manifests of a section and of their videos; "" if it has none.

    Raises:
      UserError: the manifests have no labels in common, or number their classes differently.
    """
    if not has_manifests(settings):
        return ""
    if missing := _find_missing(settings):
        return f"{missing} is missing"
    config = _replace_manifests(settings, config)
    split_checks.check_class_names(config, split_checks.choose_tasks(config))
    data = EvaluationData(config, ())
    return hash_json([*data.digests.values(), *data.video_digests.values()])


def open_inputs(
    inputs: EvalInputs, settings: Any, config: Any, name: str
) -> tuple[EvalInputs, Any] | None:
    """Returns the inputs and the config with the videos of a section.

    All label columns that both of its manifests have are its tasks.

    Args:
      inputs: the inputs of the evaluation.
      settings: the section. If it has no manifests, `inputs` and `config` are returned.
      config: the config of the evaluation.
      name: name of the section, for messages.

    Returns:
      None if a manifest of the section does not exist; a note says that the evaluator is skipped.

    Raises:
      UserError: a manifest is invalid, or both are the same.
    """
    if not has_manifests(settings):
        return inputs, config
    if missing := _find_missing(settings):
        inputs.notes.add(f"{name}: skipped, because {missing} does not exist")
        return None
    config = _replace_manifests(settings, config)
    tasks = split_checks.choose_tasks(config)
    split_checks.check_different(config)
    for note in split_checks.compare_splits(config, tasks, [name]).notes:
        inputs.notes.add(f"{name}: {note}")
    return inputs.with_dataset(EvaluationData(config, tasks)), config


def _find_missing(settings: Any) -> str:
    """Returns the local manifest that does not exist; "" if there is none."""
    for name in (settings.train_manifest, settings.val_manifest):
        is_local = not video_io.is_world(name) and not video_io.is_remote(name)
        # Several names, separated by commas, are checked when they are read.
        if is_local and "," not in name and not os.path.exists(name):
            return name
    return ""


def _replace_manifests(settings: Any, config: Any) -> ml_collections.FrozenConfigDict:
    config = ml_collections.ConfigDict(config.to_dict())
    config.update(
        train_manifest=settings.train_manifest, val_manifest=settings.val_manifest, tasks=()
    )
    config.data.manifest = config.train_manifest
    return ml_collections.FrozenConfigDict(config)
