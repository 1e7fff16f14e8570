"""Reads the parameters (as numpy arrays), config and step from a checkpoint of any run.

`manager.Checkpointer` restores a run's own checkpoints, with optimizer state and data position.
The processes read independently, so that none waits for a process that cannot read. Then all
processes agree on the result.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from invnext_jax import regular_file, sanitize
from invnext_jax.checkpointing import checksums, compressors, retention, run_metadata, storage
from invnext_jax.checkpointing.checksums import (
    READ_ERRORS,
    CorruptCheckpointError,
    translate_read_errors,
)
from invnext_jax.checkpointing.database import check_nodes
from invnext_jax.errors import UserError
from invnext_jax.multihost import consensus

CHECKPOINTS_FOLDER = "checkpoints"  # relative to the workdir
_MAX_COMPRESSION = 50  # maximum ratio of the bytes of arrays and those of their files on the disk
_MAX_UNCHECKED = 2**30  # bytes of arrays that may have any ratio
_SECTIONS = ("data", "decoder", "ema", "encoder", "eval", "predictor", "teacher")


class RunParameters(NamedTuple):
    """Parameters of a run as numpy arrays, and where they are from.

    Attributes:
      params: the parameters.
      config: the run's config.
      step: step of the checkpoint that was read.
      damaged: steps of newer checkpoints that were skipped because they are damaged.
      run_sha256: see `run_metadata.hash_run`.
      abort_reason: reason why the run was aborted when it saved the checkpoint, or "".
    """

    params: Any
    config: ml_collections.FrozenConfigDict
    step: int
    damaged: tuple[int, ...] = ()
    run_sha256: str = ""
    abort_reason: str = ""


def restore_params(path: str | pathlib.PurePath) -> tuple[Any, ml_collections.FrozenConfigDict]:
    """Reads the parameters and config of a run; see `restore_run`."""
    return restore_run(path)[:2]


def restore_run(
    path: str | pathlib.PurePath, *, ema: bool = False, step: int | None = None
) -> RunParameters:
    """Reads the parameters of a run's newest intact checkpoint.

    Warns if the run is not finished or was aborted.

    Args:
      path: the run's workdir.
      ema: whether to read the moving average of the parameters instead.
      step: step of the checkpoint to read instead of the newest intact one.

    Raises:
      UserError: the run has no intact checkpoint, or not the one of `step`, or the checkpoint has
        no moving average.
    """
    folder = storage.open_path("the run", path) / CHECKPOINTS_FOLDER
    with consensus.all_hosts_agree(f"the checkpoints in {folder}") as broadcast:
        if reason := describe_missing(path):
            raise UserError(f"{path} {reason}: use the --workdir of a run that saved a checkpoint")
        steps = finished_steps(folder)
        if step is not None and step not in steps:
            raise UserError(f"{path} has no checkpoint of step {step}: choose one of {steps}")
        broadcast.value = steps if step is None else [step]
    damaged = []
    for number in reversed(broadcast.value):
        checkpoint = folder / str(number)
        try:
            has_checksums = checksums.verify_checksums(checkpoint)
            with consensus.all_hosts_agree(f"the end of reading {checkpoint}", READ_ERRORS):
                with translate_read_errors(checkpoint, has_checksums):
                    field = "ema" if ema else "params"
                    _check_memory(checkpoint, ("step", field))
                    check_step(checkpoint)
                    found = _read_params(checkpoint, field, has_checksums)
                    _warn_if_aborted(checkpoint, found.abort_reason)
                    if step is None:
                        _warn_if_unfinished(path, found)
                        _warn_of_better(path, folder, broadcast.value, found)
                    return found._replace(damaged=tuple(damaged))
        except CorruptCheckpointError as error:
            logging.warning("checkpoint %s is damaged: %s", checkpoint, error)
            damaged.append(number)
    if step is not None:
        raise UserError(f"{folder / str(step)} is damaged: choose the checkpoint of another step")
    raise UserError(
        f"{path} has no intact checkpoint: use the --workdir of a run that saved a checkpoint"
    )


def describe_missing(path: str | pathlib.PurePath) -> str:
    """Returns why the workdir of a run has no checkpoint, as a verb; "" if it may have one."""
    workdir = storage.open_path("the run", path)
    if storage.is_dir(workdir / CHECKPOINTS_FOLDER):
        return ""
    is_there = storage.is_dir(workdir) or storage.exists(workdir)
    return "has no checkpoint" if is_there else regular_file.describe_missing(workdir)


def finished_steps(folder: storage.Path) -> list[int]:
    """Lists the steps of the finished checkpoints in a folder, oldest first.

    Returns [] if the folder does not exist. The names of unfinished and damaged checkpoints are not
    numbers, so these are not listed.
    """
    paths = folder.iterdir() if storage.is_dir(folder) else ()
    return sorted(
        int(path.name)
        for path in paths
        if path.name.isascii() and path.name.isdigit() and storage.is_finished(path)
    )


def _check_memory(checkpoint: storage.Path, fields: Sequence[str]) -> None:
    """Checks that arrays fit into the memory, because TensorStore would end the process.

    The shapes in a damaged or forged checkpoint may be arbitrarily large. Parameters can hardly be
    compressed, so arrays that are far larger than their files are forged.

    Raises:
      UserError: the arrays, or the parts in which they are stored, are too large, or see
        `database.check_nodes`.
      ValueError: see `database.check_nodes` and `compressors.check_compressors`.
    """
    if not storage.is_bucket(checkpoint):
        check_nodes(checkpoint / "state")
    shapes = read_shapes(checkpoint)
    size = 0
    leaves = jax.tree.leaves({name: shapes.get(name) for name in fields})
    if not storage.is_bucket(checkpoint):
        names = [leaf.name for leaf in leaves]
        compressors.check_compressors(checkpoint / "state", names)
    for leaf in leaves:
        parts = (leaf.shape, leaf.storage.chunk_shape if leaf.storage else ())
        size += max(map(math.prod, parts)) * np.dtype(leaf.dtype).itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"the arrays of {checkpoint} need {size / 1e9:,.0f} GB, but this machine has "
            f"{memory / 1e9:,.0f} GB: use a machine with more memory, or another checkpoint"
        )
    if size <= _MAX_UNCHECKED or storage.is_bucket(checkpoint):
        return
    files = regular_file.measure(storage.list_files(checkpoint / "state"))
    stored = sum(found.stored for path, found in files.items() if storage.is_array(path))
    if size > _MAX_COMPRESSION * stored:
        raise UserError(
            f"the arrays of {checkpoint} need {size / 1e9:,.1f} GB, but their files have only "
            f"{stored / 1e9:,.3f} GB on the disk: use another checkpoint"
        )


def _read_params(checkpoint: storage.Path, field: str, has_checksums: bool) -> RunParameters:
    workdir, step = checkpoint.parent.parent, int(checkpoint.name)
    if not read_shapes(checkpoint).get(field):
        raise UserError(
            f"the run {workdir} keeps no moving average of its parameters: train with "
            "config.ema.decay above 0, or remove --ema (of launch/export.py) or --config.ema"
        )
    record = read_json(checkpoint, "meta")
    checksums.check_checksums_exist(record, has_checksums)
    config = run_metadata.config_from_json(record["config"])
    for name in _SECTIONS:
        if not isinstance(config.get(name, config), ml_collections.FrozenConfigDict):
            raise ValueError(f"the section {name} of its config is not an object")
    if field == "params" and config.ema.decay:
        logging.warning(
            "the parameters of %s are used, and not their moving average: launch/evaluate.py "
            "evaluates the average with --config.ema, and launch/export.py exports it with --ema, "
            "also for config.init_from",
            workdir,
        )
    about = {"run_sha256": run_metadata.hash_run(record), "abort_reason": find_abort_reason(record)}
    return RunParameters(read_arrays(checkpoint, [field])[field], config, step, **about)


def find_abort_reason(meta: Mapping[str, Any]) -> str:
    """Returns the reason in a checkpoint's metadata as a short text; "" if there is none."""
    reason = meta.get("aborted", "")
    if not isinstance(reason, str):
        return ""
    return sanitize.for_display(sanitize.shorten(reason[: sanitize.MAX_MESSAGE]))


def _warn_if_aborted(checkpoint: storage.Path, reason: str) -> None:
    if reason:
        logging.warning(
            "the checkpoint %s was saved when its run was aborted: %s", checkpoint, reason
        )


def _warn_if_unfinished(path: str | pathlib.PurePath, found: RunParameters) -> None:
    if found.step < found.config.total_steps:
        logging.warning(
            "%s is not finished: step %d of %d", path, found.step, found.config.total_steps
        )


def _warn_of_better(
    path: str | pathlib.PurePath, folder: storage.Path, steps: list[int], found: RunParameters
) -> None:
    settings = found.config.get("checkpoint", {})
    if not settings.get("keep_best"):
        return
    saved = retention.read_metadata(folder, steps)
    best = retention.BestScores(settings, saved).find_best()
    if best and best[0] != found.step:
        logging.warning(
            "%s: the checkpoint of step %d is read, the newest one; that of step %d has the best "
            "%s, %.4g. `launch/export.py --step=%d` exports it",
            *(path, found.step, best[0], settings.best_metric, best[1], best[0]),
        )


def check_step(checkpoint: storage.Path) -> None:
    """Checks the step number in a checkpoint's state, without reading the other arrays.

    Called first, because Orbax reports each corrupt array separately.

    Raises:
      ValueError: the state belongs to a different step.
    """
    state = read_state(checkpoint, _as_numpy({"step": np.empty((), np.int32)}))
    if int(state["step"]) != int(checkpoint.name):
        raise ValueError(f"it contains the state of step {int(state['step'])}")


def read_json(checkpoint: storage.Path, item: str) -> dict[str, Any]:
    """Reads the item `data` or `meta` of a checkpoint, which are JSON objects.

    Raises:
      OSError: the item cannot be read.
      ValueError: the item is not a JSON object.
    """
    content = storage.read_json(checkpoint / item / "metadata")
    if not isinstance(content, dict):
        raise ValueError(f"the item {item} is not an object")
    return content


def read_config(workdir: storage.Path) -> dict[str, Any]:
    """Reads the config in a run's newest readable checkpoint; {} if there is none."""
    folder = workdir / CHECKPOINTS_FOLDER
    for step in reversed(finished_steps(folder)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return read_json(folder / str(step), "meta")["config"]
    return {}


def read_shapes(checkpoint: storage.Path) -> Mapping[str, Any]:
    """Reads the shapes and dtypes of a checkpoint's state."""
    return ocp.StandardCheckpointHandler().metadata(checkpoint / "state")


def read_arrays(checkpoint: storage.Path, fields: Sequence[str] | None = None) -> dict[str, Any]:
    """Reads fields of a checkpoint's state as numpy arrays; by default, all fields."""
    shapes = dict(read_shapes(checkpoint))
    selected = {name: shapes[name] for name in fields or shapes}
    item = jax.tree.map(lambda leaf: np.empty((), leaf.dtype), selected)
    return read_state(checkpoint, _as_numpy(item))


def read_state(checkpoint: storage.Path, args: ocp.args.CheckpointArgs) -> Any:
    """Reads the part of a checkpoint's state that `args` selects, in this process only."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=str(process)
    )
    is_standard = isinstance(args, ocp.args.StandardRestore)
    handler = ocp.StandardCheckpointHandler() if is_standard else ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        return checkpointer.restore(checkpoint / "state", args=args)


def _as_numpy(item: Any) -> ocp.args.PyTreeRestore:
    """Returns the arguments that restore only the leaves of `item`, as numpy arrays."""
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    return ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
