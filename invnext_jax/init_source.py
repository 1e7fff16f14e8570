"""The source of initial parameters, `config.init_from`: a run, an export or a published folder."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import ml_collections

from invnext_jax import json_file
from invnext_jax.checkpointing import aborted_runs, frozen_hashes, reader, run_metadata, storage
from invnext_jax.errors import UserError
from invnext_jax.multihost import consensus
from invnext_jax.multihost.distributed import log_on_process_0
from invnext_jax.stages import registry
from invnext_jax.weights import export, import_weights, match, published
from invnext_jax.weights.export import config_mismatches
from invnext_jax.weights.files import LazyTensor, open_checkpoint
from invnext_jax.weights.model_sizes import check_sizes

# Options that `copy_sizes` copies. The data options are copied only from runs and exports.
_SECTIONS = ("encoder", "predictor", "decoder", "teacher")
_FIELDS = ("variant", "dtype", "init_gain")
_CLIP_FIELDS = ("frames", "size", "short_side", "crop_scales")
_NOT_COPIED = (
    *("predictor.weights", "decoder.chunks", "decoder.noise_draws"),
    *("teacher.weights", "teacher.cache", "teacher.frames_share"),
)
# Fields that change the meaning or the shapes of the parameters, by part of the model.
_SIZES = ("width", "depth", "heads", "mlp_width")
_COMPARED_FIELDS = {
    "encoder": (*_SIZES, "patch", "size", "frames", "class_tokens"),
    "pool": ("pool_heads",),
    "predictor": (*_SIZES, "kind", "window", "last_layer"),
}


class Source(NamedTuple):
    """Initial parameters of a run.

    Attributes:
      params: parameter trees by part; None if `config.init_from` is not set. The leaves are NumPy
        arrays, or unread tensors where an export does not fit the model of the run.
      step: step of the checkpoint of a run; None if it is unknown.
      config: the config that belongs to the parameters. An export has only some sections of it.
    """

    params: Any = None
    step: int | None = None
    config: Any = None


def read_source(config: ml_collections.FrozenConfigDict) -> Source:
    """Reads the parameters in `config.init_from` and checks that they suit the run.

    Raises:
      UserError: the path has no parameters, or they have a different meaning in this run.
    """
    path = config.init_from
    if not path:
        return Source()
    if not path.endswith(".safetensors") and not published.is_published(path):
        with consensus.all_hosts_agree(f"the checkpoints in {path}"):
            if reason := reader.describe_missing(path):
                raise _no_parameters(path, reason)
        run = reader.restore_run(path)
        if run.abort_reason:
            folder = storage.open_path("config.init_from", path) / reader.CHECKPOINTS_FOLDER
            raise UserError(
                f"the run config.init_from={path} was aborted ({run.abort_reason}). "
                f"{aborted_runs.describe_restart(folder)}"
            )
        check_source(config, run.config, run.step)
        return Source(run.params, run.step, run.config)
    with consensus.all_hosts_agree(f"the weights {path}"):
        if published.is_published(path):
            imported = import_weights.read_video(open_checkpoint(path), path)
            params, found, step = imported.params, imported.config, None
        else:
            params, about = export.open_export(path)
            found, step = about.get("config", {}), about.get("source", {}).get("step")
        with import_weights.config_errors(path):
            found = run_metadata.config_from_json(found)
            check_source(config, found, None)
        params = match.read_matching(params, import_weights.part_shapes(config))
    return Source(params, step, found)


def hash_groups(config: ml_collections.ConfigDict, source: Source) -> dict[str, str]:
    """Returns the SHA-256 of each group of parameters that the run may take from the source.

    Tensors that were not read, because they do not fit the model, are left out.
    """
    groups = source.params or {}
    names = [name for name in config.init_parts or groups if name in groups]
    flat = {name: flax.traverse_util.flatten_dict(groups[name], sep="/") for name in names}
    return frozen_hashes.hash_groups(
        {
            name: {path: leaf for path, leaf in tree.items() if not isinstance(leaf, LazyTensor)}
            for name, tree in flat.items()
        }
    )


def check_source(
    config: ml_collections.ConfigDict, source: ml_collections.ConfigDict, step: int | None
) -> None:
    """Checks that the parameters from `config.init_from` have the same meaning in this run.

    Args:
      config: the config of this run.
      source: the config of the run or export in `config.init_from`. Fields missing in it are not
          compared.
      step: the number of steps that run has completed. None for an export, which counts as
          finished.

    Raises:
      UserError: that run is not finished, or differs in one of `_COMPARED_FIELDS`.
    """
    unfinished = step is not None and step < source.total_steps
    if unfinished and not config.init_from_unfinished:
        raise UserError(
            f"the run config.init_from={config.init_from} has completed {step} of "
            f"{source.total_steps} steps: finish it, or set config.init_from_unfinished"
        )
    changed = []
    for part in config.init_parts or _COMPARED_FIELDS:
        section = "encoder" if part == "pool" else part
        names, found = _COMPARED_FIELDS.get(part, ()), source.get(section, {})
        for name, own, its in config_mismatches(found, config[section], names) if names else ():
            changed.append(f"config.{section}.{name}: {its!r} in that run, {own!r} in this run")
    if changed:
        raise UserError(
            f"the run config.init_from={config.init_from} was made with different values; use its "
            "values, or leave the part out of config.init_parts:",
            *changed,
        )


def copy_sizes(
    config: ml_collections.ConfigDict, overrides: Collection[str], *, quiet: bool = False
) -> ml_collections.ConfigDict:
    """Returns a config in which sizes of models and clips are those of `config.init_from`.

    Does nothing unless `config.init_sizes` is True.

    Args:
      config: the run's config, which is not modified.
      overrides: dotted names of the options that were set on the command line, which are kept.
      quiet: whether to leave out the log of `describe_sizes`.

    Raises:
      UserError: `config.init_from` is not set, or has no readable config, or its sizes exceed the
        limits of `model_sizes.check_sizes`.
    """
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    if not config.init_sizes:
        return config
    if not config.init_from:
        raise UserError(
            "config.init_from is not set, but config.init_sizes needs the sizes of a model: set "
            "it to a run, an export, or a folder of a published encoder"
        )
    with import_weights.config_errors(config.init_from):
        found = _read_config(config.init_from)
        check_sizes(found, config.init_from)
        copy_from(found, config, overrides)
        notes = describe_sizes(found, config, overrides)
    for note in () if quiet else notes:
        log_on_process_0(note)
    return config


def copy_from(
    found: Mapping[str, Any], config: ml_collections.ConfigDict, overrides: Collection[str]
) -> None:
    """Copies the options of `copy_sizes` from the config of the source into `config`.

    Raises:
      ValueError: an option has a wrong type.
    """
    copied = {name: found[name] for name in _FIELDS if name in found}
    for section, names in {**dict.fromkeys(_SECTIONS), "data": _CLIP_FIELDS}.items():
        fields = found.get(section, {})
        copied |= {f"{section}.{n}": fields[n] for n in names or fields if n in fields}
    for name, value in copied.items():
        section, _, field = name.rpartition(".")
        target = config[section] if section else config
        if field in target and name not in (*overrides, *_NOT_COPIED):
            if not _has_type(value, target[field]):
                raise ValueError(f"config.{name}={value!r:.80} has a wrong type")
            target[field] = value


def _has_type(value: Any, default: Any) -> bool:
    """Returns whether a value has the type of a default. An integer is also a floating number."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(_has_type(v, d) for v in value for d in default[:1])
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def describe_sizes(
    found: Mapping[str, Any], config: ml_collections.ConfigDict, overrides: Collection[str]
) -> list[str]:
    """Returns sentences about sizes that are not those with which the source was trained.

    Args:
      found: the config of the source, as a dict.
      config: the output of `copy_sizes`.
      overrides: see `copy_sizes`.
    """
    notes = []
    if "drop_path" not in found.get("encoder", {}) and "encoder.drop_path" not in overrides:
        notes.append(
            f"config.encoder.drop_path={config.encoder.drop_path} is not from {config.init_from}, "
            "which does not contain it"
        )
    own = _find_unused(config)
    unused = [name for name in _find_unused(found) if name not in (*own, *overrides, *_NOT_COPIED)]
    for section in _SECTIONS:
        names = [name for name in unused if name.startswith(f"{section}.")]
        if fields := [name for name in names if name.partition(".")[2] in found.get(section, {})]:
            notes.append(
                f"config.{section} has {_join(config, fields)}, as in the config of "
                f"{config.init_from}, which shows no use of the {section}: earlier stages may have "
                "had other values"
            )
    return notes


def _find_unused(config: Mapping[str, Any]) -> Collection[str]:
    """Returns the options of `_SECTIONS` without effect; () if the config does not show them."""
    # An export has no mask. That of Stage 2 needs no teacher.
    complete = ml_collections.ConfigDict({"mask": {"kind": "multi_block"}, "init_from": ""})
    try:
        complete.update(config)
        unused = registry.find_stage(complete).unused_options(complete)
    except (LookupError, AttributeError, TypeError, ValueError):  # only sizes, or another version
        return ()
    return [name for name in unused if name.partition(".")[0] in _SECTIONS]


def _join(config: ml_collections.ConfigDict, names: Collection[str]) -> str:
    fields = (name.partition(".")[2] for name in names)
    section = next(iter(names)).partition(".")[0]
    return ", ".join(f"{field}={config[section][field]!r}" for field in fields)


def _no_parameters(path: str, reason: str) -> UserError:
    return UserError(
        f"config.init_from={path} {reason}: set it to the --workdir of a run that saved a "
        "checkpoint, an export (a .safetensors file), or the folder of a published encoder"
    )


def _read_config(path: str) -> Mapping[str, Any]:
    """Returns the part of the config that the source contains.

    The caller handles the errors of invalid configs.
    """
    if path.endswith(".safetensors"):
        about = export.open_export(path)[1]
        return run_metadata.config_from_json(about.get("config", {})).to_dict()
    if published.is_published(path):
        content = json_file.read_object(Path(path) / published.CONFIG)
        if published.EXTRA_SECTION in content:  # written by this package
            config = content[published.EXTRA_SECTION]["config"]
            return run_metadata.config_from_json(config).to_dict()
        encoder = published.encoder_config(content, path)
        del encoder["drop_path"], encoder["layer_scale"]  # not in the file
        variant = published.find_variant(encoder)
        if variant is None:
            return {"encoder": encoder, "variant": "custom"}
        return {"encoder": {**encoder, "drop_path": variant[1]}, "variant": variant[0]}
    found = reader.read_config(storage.open_path("config.init_from", path))
    if not found:
        raise _no_parameters(path, reader.describe_missing(path) or "has no checkpoint")
    return run_metadata.config_from_json(found).to_dict()
