"""Restores state and data position from a run's own checkpoint, if it matches the run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from invnext_jax.checkpointing import (
    checksums,
    evaluated_videos,
    run_metadata,
    storage,
    video_digests,
)
from invnext_jax.checkpointing.reader import check_step, read_json, read_shapes, read_state
from invnext_jax.errors import UserError
from invnext_jax.multihost import consensus
from invnext_jax.training.state import TrainState, compare_shapes, flat_shapes


class RestoredCheckpoint(NamedTuple):
    """The content of a checkpoint.

    Attributes:
      state: the training state.
      position: the position in the data.
      record: the metadata of this run for later checkpoints, see `evaluated_videos.update_record`.
      abort_reason: reason why the run was aborted when it saved the checkpoint. "" if it was not
          aborted.
    """

    state: TrainState
    position: Any
    record: Mapping[str, Any]
    abort_reason: str


def restore_step(
    folder: storage.Path, record: Mapping[str, Any], abstract: TrainState
) -> RestoredCheckpoint:
    """Reads a checkpoint. Must be called by all processes, which get the same result or error.

    Args:
      folder: the checkpoint's folder.
      record: the metadata of this run, see `run_metadata.describe_run`.
      abstract: shapes, dtypes and shardings of the state, on any mesh.

    Raises:
      CorruptCheckpointError: a process found that the checkpoint is damaged.
      UserError: the checkpoint cannot be read for another reason, or does not match this run.
    """
    has_checksums = checksums.verify_checksums(folder)
    with consensus.all_hosts_agree(f"the end of reading {folder}", checksums.READ_ERRORS):
        with checksums.translate_read_errors(folder, has_checksums):
            saved = read_json(folder, "meta")
            _check_record(folder, saved, record, has_checksums)
            check_step(folder)
            item = _select_fields(folder, abstract)
            fields = read_state(folder, ocp.args.StandardRestore(item))
            position = read_json(folder, "data")
    record = evaluated_videos.update_record(saved, record, int(folder.name))
    reason = saved.get("aborted", "")
    return RestoredCheckpoint(abstract.replace(**fields), position, record, reason)


def _check_record(
    folder: storage.Path, saved: Mapping[str, Any], record: Mapping[str, Any], has_checksums: bool
) -> None:
    if saved.get("format_version") != run_metadata.FORMAT_VERSION:
        raise UserError(
            f"the checkpoint {folder} was made by another version of the package; choose "
            "another --workdir, and set config.init_from to this run"
        )
    checksums.check_checksums_exist(saved, has_checksums)
    stages = saved["config"].get("stage"), record["config"]["stage"]
    if stages[0] != stages[1]:
        raise UserError(
            f"the checkpoint {folder} is from a run of {stages[0]}, but this run is of "
            f"{stages[1]}: choose another --workdir"
        )
    changed = run_metadata.config_differences(saved, record)
    if changed:
        raise UserError(
            f"the checkpoint {folder} was made with other options or data; restore these values, "
            "or choose another --workdir and set config.init_from to this run:",
            *changed,
        )
    video_digests.check_restored(folder, saved, record)


def _select_fields(folder: storage.Path, abstract: TrainState) -> dict[str, Any]:
    """Returns the fields of `abstract` to read, without empty fields that the checkpoint lacks.

    Raises:
      UserError: the state has different fields or parameters, because another version of the code
          made it.
    """
    on_disk = read_shapes(folder)
    fields = {field.name: getattr(abstract, field.name) for field in dataclasses.fields(abstract)}
    fields = {name: tree for name, tree in fields.items() if name in on_disk or tree != {}}
    if fields.keys() != set(on_disk):
        raise UserError(
            f"the checkpoint in {folder} has the fields {', '.join(sorted(on_disk))}, but this run "
            f"needs {', '.join(sorted(fields))}: choose another --workdir, and set "
            "config.init_from to the old run"
        )
    changed = compare_shapes(flat_shapes(on_disk["params"]), flat_shapes(abstract.params))
    if changed:
        raise UserError(
            f"the parameters in {folder} do not fit this version of the model; choose another "
            "--workdir:",
            *changed,
        )
    return fields
