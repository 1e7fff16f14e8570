"""Content hashes of the jobs of a sweep.

Two jobs with the same hash have the same result, up to rounding. The hash contains the options that
decide the result, the content of the input files, and the hash of the job that the job starts from.
It contains neither names nor paths of outputs, and no options of speed, logging or checkpoints.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from invnext_jax import config_checks
from invnext_jax.checkpointing import checksums, reader, run_metadata
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.json_file import hash_json
from invnext_jax.stages import registry
from invnext_jax.sweeps.step_config import SOURCE_OPTIONS, Kind, StepConfig, manifests_exist
from invnext_jax.training import recipe as recipe_lib
from invnext_jax.weights import export

_WEIGHTS = ("predictor.weights", "teacher.weights")


def hash_step(step: StepConfig, source_hash: str = "") -> str:
    """Returns the content hash of a step.

    Args:
      step: the config of the step.
      source_hash: hash of the job that the step starts from; "" if it starts from a path of its
        config, or from nothing.
    """
    fields = _resolved_fields(step)
    for name, manifests in step.manifests().items():
        fields[name] = _hash_manifests(manifests)
    for name in _WEIGHTS if step.kind is Kind.TRAIN else ():
        if name in fields:
            fields[name] = hash_weights(_weights(step, name))
    option = SOURCE_OPTIONS[step.kind]
    fields[option] = source_hash or hash_weights(step.own_source)
    return hash_json([step.kind.value, fields])


def missing_files(step: StepConfig) -> list[str]:
    """Returns the input files of a step that do not exist on this machine."""
    missing = [name for name in step.manifests().values() if not manifests_exist(name)]
    paths = [step.own_source]
    if step.kind is Kind.TRAIN:
        unused = config_checks.unused_options(step.config, registry.find_stage(step.config))
        paths += [_weights(step, name) for name in _WEIGHTS if name not in unused]
    return missing + [path for path in paths if path and not _exists(path)]


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
    fields = run_metadata.result_fields(run_metadata.config_to_json(config))
    return {n: v for n, v in fields.items() if n not in recipe_lib.SOURCES.values()}


def _hash_manifests(names: str) -> str:
    if not manifests_exist(names):
        return f"missing: {names}"
    return manifest_lib.hash_manifests(manifest_lib.find_manifests(names))


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
    if path.is_file():
        return [path]
    folder = path / reader.CHECKPOINTS_FOLDER
    if steps := reader.finished_steps(folder):
        newest = folder / str(steps[-1])
        listed = newest / checksums.CHECKSUMS_FILE  # it contains the hashes of all other files
        return [listed] if listed.is_file() else sorted(filter(Path.is_file, newest.rglob("*")))
    return sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors"))


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _hash_file(path: Path, size: int, modified: int) -> str:
    """Returns the SHA-256 of a file. The other arguments are part of the cache key."""
    del size, modified
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
