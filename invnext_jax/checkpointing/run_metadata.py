"""Metadata of a run that is saved in its checkpoints, and checks against it.

A resumed run must match the metadata of its checkpoint.
"""

import copy
import importlib.metadata
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from invnext_jax import json_file, sanitize
from invnext_jax.checkpointing.git_hash import read_git_hash

FORMAT_VERSION = 2  # version of checkpoints; version 1 had the state of a grain iterator
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# Fields, or groups of fields, that may be changed when a run is resumed, with the conditions. All
# other fields change what a step computes. docs/scripts/generate_options.py copies the conditions.
_ROUNDING = "yes; results are equal up to rounding"
_CONTENT = "yes, if the content is the same"
_MISSING = object()
_NEUTRAL = ("yes", _ROUNDING)  # rules of options that do not change the result
CHANGEABLE_FIELDS: dict[str, str] = {
    "epochs": "yes, with the same warning as `total_steps`",
    "total_steps": "yes; a warning states how far the learning rate jumps",
    "optimizer.base_learning_rate": "if `optimizer.learning_rate` is set by hand",
    "optimizer.base_min_learning_rate": "if `optimizer.min_learning_rate` is set by hand",
    "optimizer.warmup_epochs": "if `optimizer.warmup_steps` is set by hand",
    "accumulate": "yes; masks and noise are drawn from the same distributions with different keys",
    "init_from": "if it was set at the start, and its step and parameters are the same",
    "init_from_unfinished": "yes",
    "init_sizes": "yes, if the sizes are the same",
    "variant": "yes, if the sizes are the same",
    "teacher.weights": _CONTENT,
    "teacher.cache": _ROUNDING,
    "mesh": _ROUNDING,
    "attention": _ROUNDING,
    "sequence_attention": _ROUNDING,
    "remat": _ROUNDING,
    "scan_unroll": _ROUNDING,
    "decoder.chunks": _ROUNDING,
    "eval": "yes",
    "log": "yes",
    "profile_steps": "yes",
    "checkpoint": "yes",
    "data.manifest": _CONTENT,
    "data.protocols": "yes",
    "data.other_hosts": "yes",
    "data.prefetch": "yes",
    "data.workers": "yes",
    "data.clip_seconds": "yes",
    "data.on_bad": "yes",
    "data.max_bad_share": "yes",
}


def resume_rule(name: str) -> str:
    """Returns whether an option may be changed on resume, as text: "no", "yes" or a condition."""
    matches = (rule for field, rule in CHANGEABLE_FIELDS.items() if _is_part(name, field))
    return next(matches, "no")


def result_fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that decide the result of a run, by dotted name.

    Options that only change how the result is computed, up to rounding, are left out, as are those
    that have the value of versions in which they did not exist. Paths of input files are not left
    out.

    Args:
      tree: a config as read from a JSON file, or the output of `config_to_json`.
    """
    fields = _set_fields(tree)
    return {name: value for name, value in fields.items() if resume_rule(name) not in _NEUTRAL}


def hash_run(record: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what may not be changed when a run is resumed.

    Checkpoints with different hashes are not of the same run. The hash depends on the options that
    may not be changed, except those with the value of versions in which they did not exist, and on
    the contents of the manifests, of the encoder in `config.init_from` and of frozen parameters.

    Args:
      record: the metadata of a checkpoint, see `describe_run`.
    """
    fields = _set_fields(record["config"])
    fixed = {name: value for name, value in fields.items() if resume_rule(name) == "no"}
    source = record.get("init_from_sha256")
    encoder = source.get("encoder") if isinstance(source, dict) else None
    contents = [record.get(name) for name in ("manifest_sha256", "frozen_sha256")]
    return json_file.hash_json([fixed, encoder, *contents])


def _set_fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options that differ from versions in which they did not exist, by dotted name."""
    fields = flatten(upgrade_config(tree))
    return {n: value for n, value in fields.items() if _ADDED_FIELDS.get(n, _MISSING) != value}


# Fields that may differ between the hosts of a run: paths, and settings for reading the data.
PER_HOST_FIELDS = (
    *("data.protocols", "data.other_hosts"),
    *("data.manifest", "data.prefetch", "data.workers", "data.clip_seconds"),
    *("init_from", "predictor.weights", "teacher.weights", "eval.manifest"),
)

# Fields added since format 2, with the values that match the behavior before they were added.
_ADDED_FIELDS: dict[str, Any] = {
    "accumulate": 1,
    "attention": "auto",
    "sequence_attention": "gather",
    "ema.decay": 0.0,
    "init_sizes": False,
    "epochs": 0.0,  # steps and rates were given as numbers, not computed from epochs
    "profile_steps": [],
    "quantize_frozen": "",
    "scan_unroll": 1,
    "checkpoint.every_minutes": 0.0,
    "checkpoint.keep_best": 0,
    "checkpoint.best_metric": "loss",
    "checkpoint.best_mode": "min",
    "data.augment": True,
    "data.held_out": 0,
    "data.repeats": 1,
    "data.shuffle_block_size": 0,
    "data.protocols": [],
    "data.other_hosts": False,
    "data.weights": [],
    "decoder.chunks": 1,
    "eval.every_steps": 0,
    "eval.manifest": "",
    "eval.neighbors": 10,
    "eval.videos": 512,
    "log.collapse_ratio": 0.0,
    "log.measure_ceiling": True,
    "log.strips": 0,
    "log.tracker": "",
    "log.watchdog_minutes": 15.0,
    "mask.context_frames": 0,
    "mask.max_temporal_keep": 1.0,
    "mask.predicted": 1.0,
    "optimizer.base_learning_rate": 0.0,
    "optimizer.base_min_learning_rate": 0.0,
    "optimizer.warmup_epochs": 0.0,
    "teacher.cache": "",
    "teacher.frames_share": 1.0,
    "teacher.resample": False,
}


def upgrade_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to a saved config the fields that were introduced after it was saved.

    Added fields get the value that matches the behavior of the older version. An export contains
    only part of a config, and missing sections are not added.

    Args:
      tree: the config as read from a JSON file; it is not modified.
    """
    tree = copy.deepcopy(dict(tree))
    is_complete = "total_steps" in tree  # False for the partial config of an export
    if is_complete:
        for section in ("ema", "eval"):
            tree.setdefault(section, {})
    for name, value in _ADDED_FIELDS.items():
        section, _, field = name.rpartition(".")
        parent = tree.get(section) if section else tree if is_complete else None
        if isinstance(parent, dict):
            parent.setdefault(field, copy.copy(value))
    data = tree.get("data")
    if isinstance(data, dict) and "no_flip_sources" in data:
        sources = data.pop("no_flip_sources")
        data.setdefault("by_source", {name: {"flip": False} for name in sources})
    return tree


def config_to_json(
    config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict,
) -> dict[str, Any]:
    """Returns the config as a JSON-compatible dict, with lists for tuples and no URL secrets."""
    return sanitize.redact_tree(json.loads(json.dumps(config.to_dict())))


def config_from_json(tree: dict[str, Any]) -> ml_collections.FrozenConfigDict:
    """Inverts `config_to_json`, and upgrades configs of older versions with `upgrade_config`."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: restore(inner) for name, inner in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ml_collections.FrozenConfigDict(restore(upgrade_config(tree)))


def describe_run(
    config: ml_collections.ConfigDict,
    manifest_sha256: str,
    init_from_step: int | None = None,
    frozen_sha256: Mapping[str, str] | None = None,
    init_from_sha256: Mapping[str, str] | None = None,
    video_digests: Sequence[Mapping[str, Any]] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the JSON-compatible metadata that is saved in each checkpoint of a run.

    Args:
      config: the run's config.
      manifest_sha256: SHA-256 of the run's manifests, see `manifest.hash_manifests`.
      init_from_step: step of the checkpoint in `config.init_from`, or None.
      frozen_sha256: hash of each group of frozen parameters, see `frozen_hashes.hash_groups`.
      init_from_sha256: hash of each group in `config.init_from`, see `init_source.hash_groups`.
      video_digests: digests of some of the run's videos, see `video_digests.sample_digests`.
      evaluation: identity of the videos of `config.eval`, see `evaluated_videos.identify`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "config": config_to_json(config),
        "init_from_step": init_from_step,
        "init_from_sha256": dict(init_from_sha256 or {}),
        "manifest_sha256": manifest_sha256,
        "video_digests": list(video_digests),
        "frozen_sha256": dict(frozen_sha256 or {}),
        "evaluation": dict(evaluation or {}),
        "process_count": jax.process_count(),
        "device_count": jax.device_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "git": read_git_hash(),
    }


def config_differences(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    changeable: Collection[str] = CHANGEABLE_FIELDS.keys(),
) -> list[str]:
    """Lists the fields that changed but must not, as `field: saved value -> current value`.

    Args:
      saved: the metadata of the checkpoint, see `describe_run`.
      current: the metadata of this run.
      changeable: fields, or groups of fields, that are not compared.
    """
    before, now = flatten(upgrade_config(saved["config"])), flatten(current["config"])
    rows = [
        (f"config.{name}", before.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(before.keys() | now.keys())
        if not any(_is_part(name, field) for field in changeable)
    ]
    hashes = saved.get("manifest_sha256", "absent"), current["manifest_sha256"]
    rows.append(("content of the manifest (SHA-256)", *hashes))
    steps = saved.get("init_from_step"), current["init_from_step"]
    if None not in steps:
        rows.append(("step of config.init_from", *steps))
    if now.get("init_from") and not before.get("init_from"):  # it would have no effect
        rows.append(("config.init_from", "", now["init_from"]))
    old, new = saved.get("init_from_sha256", {}), current.get("init_from_sha256", {})
    # An export may have fewer groups than its run, and older checkpoints have no hashes.
    rows += [
        (f"SHA-256 of the {name} in config.init_from", old[name], new.get(name, "absent"))
        for name in sorted(old.keys() & new.keys() or old.keys())
    ]
    old, new = saved.get("frozen_sha256"), current.get("frozen_sha256", {})
    if old is None:  # the checkpoint was made by an older version
        path = "teacher.weights"
        rows.append((f"config.{path}", before.get(path, "absent"), now.get(path, "absent")))
    else:
        rows += [
            (f"SHA-256 of the frozen {name}", old.get(name, "absent"), new.get(name, "absent"))
            for name in sorted(old.keys() | new.keys())
        ]
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in rows if old != new]


def _is_part(name: str, field: str) -> bool:
    """Returns whether an option is one of the given fields or belongs to one of their groups."""
    return name == field or name.startswith(field + ".")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted name."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
