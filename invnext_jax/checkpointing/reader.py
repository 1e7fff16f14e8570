"""Reading checkpoints of any run: parameters, config and step, as numpy arrays.

A run's own, with optimiser and data, are saved and restored by `checkpointer`. Each of several
processes reads for itself, so none waits for another one that cannot read; what is found is agreed
on afterwards.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from invnext_jax.checkpointing import checksums, run_metadata
from invnext_jax.checkpointing.checksums import KINDS, CorruptCheckpointError, translate_read_errors
from invnext_jax.errors import UserError
from invnext_jax.multihost import consensus

FOLDER = "checkpoints"


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
    with consensus.all_hosts_agree(f"the checkpoints in {folder}") as told:
        if not folder.is_dir():
            raise UserError(
                f"{path} holds no checkpoint: give the --workdir of a run that saved one"
            )
        told.value = finished_steps(folder)
    for step in reversed(told.value):
        try:
            has_sums = checksums.verify_checksums(folder / str(step))
            with consensus.all_hosts_agree(f"the end of reading {folder / str(step)}", KINDS):
                with translate_read_errors(folder / str(step), has_sums):
                    probe(folder / str(step))
                    return _read_params(folder / str(step), "ema" if ema else "params", has_sums)
        except CorruptCheckpointError as error:
            logging.warning("checkpoint %s is damaged: %s", folder / str(step), error)
    raise UserError(
        f"{path} holds no intact checkpoint: give the --workdir of a run that saved one"
    )


def finished_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _read_params(step: pathlib.Path, name: str, has_sums: bool) -> Restored:
    workdir = step.parent.parent
    if not read_shapes(step).get(name):
        raise UserError(
            f"the run {workdir} keeps no moving average of its parameters: train with "
            "config.ema.decay above 0, or leave --ema out"
        )
    record = read_json(step, "meta")
    checksums.check_checksums_exist(record, has_sums)
    config = run_metadata.config_from_json(record["config"])
    if int(step.name) < config.total_steps:
        logging.warning("%s is not finished: step %s of %d", workdir, step.name, config.total_steps)
    return Restored(read_arrays(step, [name])[name], config, int(step.name))


def probe(step: pathlib.Path) -> None:
    """Reads one number first: of damaged files, Orbax reports each array that it reads at once."""
    found = int(read_state(step, _as_numpy({"step": np.empty((), np.int32)}))["step"])
    if found != int(step.name):
        raise ValueError(f"it holds the state of step {found}")


def read_json(step: pathlib.Path, item: str) -> Any:
    """What the item `data` or `meta` of a checkpoint holds."""
    return json.loads((step / item / "metadata").read_text())


def read_shapes(step: pathlib.Path) -> Mapping[str, Any]:
    """Shapes and dtypes of a checkpoint's state."""
    return ocp.StandardCheckpointHandler().metadata(step / "state")


def read_arrays(step: pathlib.Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The fields of a checkpoint's state that are named, or all, as numpy arrays."""
    shapes = dict(read_shapes(step))
    wanted = {name: shapes[name] for name in names or shapes}
    return read_state(step, _as_numpy(jax.tree.map(lambda leaf: np.empty((), leaf.dtype), wanted)))


def read_state(step: pathlib.Path, args: ocp.args.CheckpointArgs) -> Any:
    """Reads from a checkpoint's state what `args` say, without a word to other processes."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me)
    )
    is_standard = isinstance(args, ocp.args.StandardRestore)
    handler = ocp.StandardCheckpointHandler() if is_standard else ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(step / "state", args=args)


def _as_numpy(wanted: Any) -> ocp.args.PyTreeRestore:
    """Restores the leaves of `wanted` alone, as numpy arrays."""
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.args.PyTreeRestore(
        item=wanted, restore_args=jax.tree.map(lambda _: kind, wanted), partial_restore=True
    )
