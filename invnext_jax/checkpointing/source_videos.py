"""Describes the held-out videos of a run, also those on which its sources have trained.

The sources are the run in `config.init_from`, the run from which that one started, and so on.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from invnext_jax import sanitize
from invnext_jax.checkpointing import run_record
from invnext_jax.data import held_out, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.copies import COPIES_SECONDS, find_copies
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError

MAX_RUNS = 8  # maximum number of runs that are followed from source to source


def describe_held_out(config: Any, training: Manifest, evaluated: Manifest | None) -> list[str]:
    """Returns sentences about copies, unused held-out videos, and the sources of the run.

    The arguments are those of `describe_source`.
    """
    notes = (
        held_out.describe_copies(training, config.data.held_out),
        held_out.describe_unused(config, training),
        describe_source(config, training, evaluated),
    )
    return [note for note in notes if note]


def describe_source(config: Any, training: Manifest, evaluated: Manifest | None) -> str:
    """Returns a sentence if a source has, or may have, trained on evaluated videos; "" otherwise.

    Videos are compared as in `copies.find_copies`, for at most about `COPIES_SECONDS` per run.
    Exports and published encoders do not contain their manifests.

    Args:
      config: the run's config.
      training: the rows of `config.data.manifest`.
      evaluated: the rows of `config.eval.manifest`; None if it is empty.
    """
    if not config.eval.every_steps or not config.init_from:
        return ""
    rows = np.arange(len(evaluated or ()))
    if evaluated is None:
        rows = held_out.held_out_rows(training, config.data.held_out)
    shown, unknown = evaluated or training, ""
    for path, record in _follow(config.init_from):
        found = _read_trained(record, config, training)
        if found is None:
            name = sanitize.redact_urls(str(record["config"]["data"]["manifest"]))[:200]
            unknown = unknown or (
                f"warning: it is unknown whether {path} trained on the evaluated videos, because "
                f"its manifest {ascii(name)} is missing or was changed since: compare eval/* only "
                "if you know that it did not"
            )
            continue
        if copies := find_copies(found[0], shown, found[1], rows, seconds=COPIES_SECONDS):
            return (
                f"warning: {path} trained on {len(copies)} of {len(rows)} evaluated videos, such "
                f"as {ascii(shown[next(iter(copies))].name)}, so that eval/* is not a score on "
                "unseen videos: use the manifest and config.data.held_out of that run, or set "
                "config.eval.manifest to other videos"
            )
    return unknown


def _follow(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the workdir and the metadata of each run, up to one without a source."""
    for number in range(MAX_RUNS):
        # Later paths are in files that may come from elsewhere.
        if not path or path.endswith(".safetensors") or (number and video_io.is_remote(path)):
            return
        try:
            record = run_record.read_run_record(path)
            run_record.check_config(record["config"], path)
        except (UserError, OSError):
            return
        yield path, record
        path = str(record["config"].get("init_from", ""))


def _read_trained(
    record: Mapping[str, Any], config: Any, training: Manifest
) -> tuple[Manifest, np.ndarray | None] | None:
    """Returns the manifest and the training rows (None for all) of a run.

    Returns None if the manifest cannot be read or was changed since.
    """
    digest, data = record.get("manifest_sha256"), record["config"]["data"]
    names, count = data["manifest"], data.get("held_out", 0)
    try:
        found = training
        if digest != manifest_lib.hash_manifests(config.data.manifest):
            parts = manifest_lib.split_names(names)
            is_local = all(video_io.is_world(name) or os.path.isfile(name) for name in parts)
            if not is_local or digest != manifest_lib.hash_manifests(names):
                return None
            found = manifest_lib.read_manifest(names, AccessRules.from_config(config.data))
        if type(count) is not int or count < 0:
            return None
        return found, held_out.training_rows(found, count)
    except (UserError, OSError):
        return None
