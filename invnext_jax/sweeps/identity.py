"""Content hashes of the jobs of a sweep.

Two jobs with the same hash have the same result, up to rounding. The hash contains the options that
decide the result, the content of the input files, and the hash of the job that the job starts from.
It contains neither names nor paths of outputs, and no options of speed, logging or checkpoints.

Videos are identified by the digests that a resumed run compares (`video_digests.sample_digests`),
so that large data sets stay cheap. Remote and unreadable videos are identified by their manifest
only.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from absl import logging

from invnext_jax import config_checks, regular_file
from invnext_jax.checkpointing import checksums, reader, run_metadata, storage, video_digests
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import video_io
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.evaluation.evaluators import registry as evaluator_registry
from invnext_jax.json_file import hash_json
from invnext_jax.stages import registry
from invnext_jax.sweeps.step_config import SOURCE_OPTIONS, Kind, StepConfig, manifests_exist
from invnext_jax.training import recipe as recipe_lib
from invnext_jax.weights import export

_WEIGHTS = ("predictor.weights", "teacher.weights")
# Options of the evaluation during a training, whose metrics may be columns of the table.
_ONLINE_EVALUATION = ("eval.every_steps", "eval.videos", "eval.neighbors")


def hash_step(step: StepConfig, source_hash: str = "") -> str:
    """Returns the content hash of a step.

    Args:
      step: the config of the step.
      source_hash: hash of the job that the step starts from; "" if it starts from a path of its
        config, or from nothing.
    """
    fields = _resolved_fields(step)
    rules, seconds = AccessRules.from_config(step.config.data), step.config.data.clip_seconds
    for name, manifests in {**step.manifests(), **step.other_manifests()}.items():
        fields[name] = _hash_data(manifests, rules, seconds)
    if step.kind is Kind.EVALUATE:
        fields |= _hash_files(step)
    for name in _WEIGHTS if step.kind is Kind.TRAIN else ():
        if name in fields:
            fields[name] = hash_weights(_weights(step, name))
    option = SOURCE_OPTIONS[step.kind]
    fields[option] = source_hash or hash_weights(step.own_source)
    return hash_json([step.kind.value, fields])


def missing_files(step: StepConfig) -> list[str]:
    """Returns the input files of a step that do not exist on this machine."""
    missing = [name for name in step.manifests().values() if not manifests_exist(name)]
    return missing + [path for path in _list_sources(step) if not _exists(path)]


def list_inputs(step: StepConfig) -> list[str]:
    """Returns the local manifests, weights and runs that a step reads, whether they exist or not.

    The files of this package and the outputs of other steps are left out.
    """
    manifests = [*step.manifests().values(), *step.other_manifests().values()]
    names = [name for text in manifests for name in manifest_lib.split_names(text)]
    names = [name for name in names if not video_io.is_world(name)] + _list_sources(step)
    return [n for n in names if "://" not in n and not Path(n).is_relative_to(export.ASSETS)]


def _list_sources(step: StepConfig) -> list[str]:
    """Returns the run or encoder of the config, and the weights of a training."""
    paths = [step.own_source]
    if step.kind is Kind.TRAIN:
        unused = config_checks.unused_options(step.config, registry.find_stage(step.config))
        paths += [_weights(step, name) for name in _WEIGHTS if name not in unused]
    return [path for path in paths if path]


def _weights(step: StepConfig, name: str) -> str:
    section, _, field = name.rpartition(".")
    return export.resolve_path(step.config[section][field])


def _resolved_fields(step: StepConfig) -> dict[str, Any]:
    """Returns the options that decide the result, with the recipe of a training as numbers."""
    if step.kind is Kind.EVALUATE:
        fields = run_metadata.result_fields(run_metadata.config_to_json(step.config))
        fields.pop("data.root")
        return fields
    config, _ = recipe_lib.resolve_config(step.config, step.training_videos())
    options = run_metadata.config_to_json(config)
    fields = run_metadata.result_fields(options)
    if config.eval.every_steps:
        flat = run_metadata.flatten(options)
        fields |= {name: flat[name] for name in _ONLINE_EVALUATION}
    return {n: v for n, v in fields.items() if n not in recipe_lib.SOURCES.values()}


def _hash_data(names: str, rules: AccessRules, seconds: float) -> str:
    """Returns a hash of the content of manifests and of their videos, without their paths."""
    if not manifests_exist(names):
        return f"missing: {names}"
    files = manifest_lib.find_manifests(names)
    digest = manifest_lib.hash_manifests(files)
    found = digest_videos(files, rules, seconds, digest)
    return hash_json([digest, found]) if found else digest


@functools.cache
def digest_videos(
    names: str, rules: AccessRules, seconds: float, digest: str
) -> tuple[tuple[int, str], ...]:
    """Returns the rows and the digests of those sampled videos that can be read.

    The result is cached. Call `digest_videos.cache_clear()` to read replaced videos again.

    Args:
      names: names of the manifests, separated by commas.
      rules: which files the rows may refer to.
      seconds: time limit, see `video_digests.digest_files`.
      digest: hash of the content of the manifests, which is part of the cache key.

    Raises:
      UserError: a manifest is invalid.
    """
    del digest
    local = [name for name in manifest_lib.split_names(names) if not video_io.is_world(name)]
    if not local:
        return ()
    sample = video_digests.sample_digests(manifest_lib.read_manifest(local, rules), seconds)
    found = tuple((entry["row"], entry["digest"]) for entry in sample if entry["digest"])
    if len(found) < len(sample):
        logging.warning(
            "%d of the %d videos that identify %s cannot be read; when they can, the sweep has "
            "other jobs for the same steps",
            *(len(sample) - len(found), len(sample), names),
        )
    return found


def _hash_files(step: StepConfig) -> dict[str, str]:
    """Returns the hash of further files of each evaluator, such as captions.

    Evaluators with their own manifests are left out, which are part of the hash anyway.
    """
    config = step.config.copy_and_resolve_references()
    files = {name: manifest_lib.find_manifests(m) for name, m in step.manifests().items()}
    config.update(files)
    own = {name.partition(".")[0] for name in step.other_manifests()}
    found = {}
    for evaluator in evaluator_registry.find_evaluators(config.evaluators):
        has_own = not own.isdisjoint(getattr(evaluator, "options", ()))
        if hasattr(evaluator, "hash_files") and not has_own:
            found[f"files of {evaluator.name}"] = evaluator.hash_files(config)
    return found


def _exists(path: str) -> bool:
    return "://" in path or os.path.exists(path)


def hash_weights(path: str) -> str:
    """Returns the hash of a file of weights, a run, or a folder of a published model.

    Paths of other kinds, such as URLs and files that do not exist, are returned unchanged.
    """
    if not path or "://" in path or not os.path.exists(path):
        return path
    files = _find_files(Path(path))
    return hash_json([_hash_file(file, *_version(file)) for file in files])


def _find_files(path: Path) -> list[Path]:
    """Returns the files whose content decides what is read from a path."""
    if os.path.isfile(path):
        return [path]
    folder = path / reader.CHECKPOINTS_FOLDER
    if steps := reader.finished_steps(folder):
        newest = folder / str(steps[-1])
        listed = newest / checksums.CHECKSUMS_FILE  # it contains the hashes of all other files
        if os.path.isfile(listed):
            return [listed]
        return sorted(filter(os.path.isfile, storage.list_files(newest)))
    return sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _hash_file(path: Path, size: int, modified: int) -> str:
    """Returns the SHA-256 of a file. The other arguments are part of the cache key."""
    del size, modified
    with regular_file.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
