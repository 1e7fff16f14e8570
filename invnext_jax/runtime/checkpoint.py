"""Reading checkpoints of any run: parameters, config and step, as numpy arrays.

A run's own, with optimiser and data, are saved and restored by `checkpointer`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from invnext_jax.errors import UserError
from invnext_jax.runtime import integrity, provenance
from invnext_jax.runtime.integrity import DamagedError, damage

FOLDER = "checkpoints"


def item_handlers(state: ocp.CheckpointHandler) -> dict[str, ocp.CheckpointHandler]:
    """What reads and writes the items of a checkpoint, `state` that of this name."""
    return {
        "state": state,
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }


class Restored(NamedTuple):
    """Of another run: parameters as numpy arrays, config, and the step that they were saved at."""

    params: Any
    config: ml_collections.FrozenConfigDict
    step: int


def restore_params(path: str | pathlib.Path) -> tuple[Any, ml_collections.FrozenConfigDict]:
    """Parameters and config of a run, see `restore_run`."""
    return restore_run(path)[:2]


def restore_run(path: str | pathlib.Path, *, ema: bool = False) -> Restored:
    """Reads the parameters of a run's newest intact checkpoint; warns if the run is not finished.

    Args:
        path: the run's workdir.
        ema: whether the parameters' moving average is wanted instead of themselves.

    Returns:
        Parameters, config and step.

    Raises:
        UserError: there is no intact checkpoint, or no moving average in it.
    """
    folder = pathlib.Path(path).absolute() / FOLDER
    if not folder.is_dir():
        raise UserError(f"{path} holds no checkpoint: give the --workdir of a run that saved one")
    handlers = item_handlers(ocp.PyTreeCheckpointHandler())
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, item_handlers=handlers, options=options) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                has_sums = integrity.verify_sums(folder / str(step))
                with damage(folder / str(step), has_sums):
                    probe(folder, step)
                    return _read_params(manager, step, "ema" if ema else "params", has_sums)
            except DamagedError as error:
                logging.warning("checkpoint %s is damaged: %s", folder / str(step), error)
    raise UserError(
        f"{path} holds no intact checkpoint: give the --workdir of a run that saved one"
    )


def probe(folder: pathlib.Path, step: int) -> None:
    """Reads one number first: of damaged files, Orbax reports each array that it reads at once."""
    wanted = {"step": np.empty((), np.int32)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(folder / str(step) / "state", args=_partial_restore(wanted))
    if int(found["step"]) != step:
        raise ValueError(f"it holds the state of step {int(found['step'])}")


def _read_params(manager: ocp.CheckpointManager, step: int, name: str, has_sums: bool) -> Restored:
    saved = metadata(manager, step)
    if not saved.get(name):
        raise UserError(
            f"the run {manager.directory.parent} keeps no moving average of its parameters: train "
            "with config.ema.decay above 0, or leave --ema out"
        )
    wanted = {name: jax.tree.map(lambda leaf: np.empty((), leaf.dtype), dict(saved[name]))}
    items = manager.restore(
        step,
        args=ocp.args.Composite(
            state=_partial_restore(wanted),
            meta=ocp.args.JsonRestore(),
        ),
    )
    integrity.check_sums_are_there(items["meta"], has_sums)
    config = provenance.from_json(items["meta"]["config"])
    if step < config.total_steps:
        logging.warning(
            "%s is not finished: step %d of %d", manager.directory.parent, step, config.total_steps
        )
    return Restored(items["state"][name], config, step)


def _partial_restore(wanted: Any) -> ocp.args.PyTreeRestore:
    """Restores the leaves of `wanted` alone, as numpy arrays."""
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.args.PyTreeRestore(
        item=wanted, restore_args=jax.tree.map(lambda _: kind, wanted), partial_restore=True
    )


def metadata(manager: ocp.CheckpointManager, step: int) -> Mapping[str, Any]:
    """Shapes and dtypes of a checkpoint's state; ValueError if they are missing."""
    found = manager.item_metadata(step)["state"]
    if found is None:
        raise ValueError("the state's metadata is missing")
    return found
