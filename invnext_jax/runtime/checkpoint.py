"""Checkpoints: state, position in the data and the run's record, written in the background.

A run's checkpoints lie in `<workdir>/checkpoints/<step>`, each with three items: `state`, `data`
(JSON: the position in the data, one for all processes) and `meta` (JSON, see
`provenance.describe_run`).
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from invnext_jax.errors import UserError
from invnext_jax.runtime import provenance
from invnext_jax.runtime.state import TrainState

_FOLDER = "checkpoints"


class Checkpointer:
    """Saves and restores one run.

    Args:
        workdir: the run's folder.
        config: the run's whole config; `config.checkpoint` says what is kept.
        init_from_step: step of the checkpoint that `config.init_from` gave, if it names one.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        config: ml_collections.ConfigDict,
        init_from_step: int | None = None,
    ):
        self._folder = pathlib.Path(workdir).absolute() / _FOLDER
        self._record = provenance.describe_run(config, init_from_step)
        kept = [checkpoint_managers.LatestN(config.checkpoint.keep_last)]
        if config.checkpoint.keep_every_steps:
            kept.append(checkpoint_managers.EveryNSteps(config.checkpoint.keep_every_steps))
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=_handlers(ocp.StandardCheckpointHandler()),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept)
            ),
        )

    @property
    def folder(self) -> pathlib.Path:
        """Where the checkpoints lie."""
        return self._folder

    def save(self, step: int, state: TrainState, data_iter: Iterator[Any]) -> None:
        """Starts to save what stands after `step` steps; does nothing if it is saved already.

        Returns as soon as the arrays are copied off the devices, so the state may be donated then.
        `data_iter` must have delivered exactly the batches of these steps.
        """
        if step == self._manager.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data_iter.get_state()),
                meta=ocp.args.JsonSave({**self._record, "step": step}),
            ),
            force=True,
        )

    def restore(self, abstract: TrainState, data_iter: Iterator[Any]) -> TrainState | None:
        """Restores the newest intact checkpoint, falling back over damaged ones with a warning.

        Args:
            abstract: shapes, dtypes and shardings of the state, on any mesh.
            data_iter: the run's data iterator, set in place to where the checkpoint was.

        Returns:
            The state, or None if the run has no checkpoint.

        Raises:
            UserError: the checkpoint was made with another config, or none is intact.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                state = self._restore_step(step, abstract, data_iter)
            except _DamagedError as error:
                logging.warning("checkpoint %s is damaged: %s", self._folder / str(step), error)
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return state
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self._folder} is intact; "
                "move that folder away to start afresh"
            )
        return None

    def _restore_step(
        self, step: int, abstract: TrainState, data_iter: Iterator[Any]
    ) -> TrainState:
        with _damage():
            record = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
            if record.get("format_version") != provenance.FORMAT_VERSION:
                raise UserError(
                    f"the checkpoint {self._folder / str(step)} was made by another version of "
                    "the package; choose another --workdir, and name this run in config.init_from"
                )
            changed = provenance.differences(record, self._record)
        if changed:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} was made with another config; restore "
                "these values, or choose another --workdir:\n  " + "\n  ".join(changed)
            )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            data=ocp.args.JsonRestore(),
        )
        with _damage():
            _probe(self._folder, step)
            self._check_shapes(step, abstract)
            found = self._manager.restore(step, args=items)
        data_iter.set_state(found["data"])
        return found["state"]

    def _check_shapes(self, step: int, abstract: TrainState) -> None:
        """Tells damage from parameters that another version of the code made."""
        saved = flat_shapes(_metadata(self._manager, step)["params"])
        wanted = flat_shapes(abstract.params)
        changed = compare_shapes(saved, wanted)
        if changed:
            raise UserError(
                f"the parameters in {self._folder / str(step)} do not fit this version of the "
                "model; choose another --workdir:\n  " + "\n  ".join(changed)
            )

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step in steps if jax.process_index() == 0 else ():
            source = self._folder / str(step)
            target = self._folder / f"damaged-{step}"
            number = 1
            while target.exists():
                number += 1
                target = self._folder / f"damaged-{step}-{number}"
            source.rename(target)
        if steps:
            self._manager.reload()

    def wait(self) -> None:
        """Waits until what was saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self._manager.close()


def _handlers(state: ocp.CheckpointHandler) -> dict[str, ocp.CheckpointHandler]:
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
    folder = pathlib.Path(path).absolute() / _FOLDER
    if not folder.is_dir():
        raise UserError(f"{path} holds no checkpoint: give the --workdir of a run that saved one")
    handlers = _handlers(ocp.PyTreeCheckpointHandler())
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder, item_handlers=handlers, options=options) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                with _damage():
                    _probe(folder, step)
                    return _read_params(manager, step, "ema" if ema else "params")
            except _DamagedError as error:
                logging.warning("checkpoint %s is damaged: %s", folder / str(step), error)
    raise UserError(
        f"{path} holds no intact checkpoint: give the --workdir of a run that saved one"
    )


def _probe(folder: pathlib.Path, step: int) -> None:
    """Reads one number first: of damaged files, Orbax reports each array that it reads at once."""
    wanted = {"step": np.empty((), np.int32)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.restore(folder / str(step) / "state", args=_partial_restore(wanted))
    if int(found["step"]) != step:
        raise ValueError(f"it holds the state of step {int(found['step'])}")


def _read_params(manager: ocp.CheckpointManager, step: int, name: str) -> Restored:
    saved = _metadata(manager, step)
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


def _metadata(manager: ocp.CheckpointManager, step: int) -> Mapping[str, Any]:
    metadata = manager.item_metadata(step)["state"]
    if metadata is None:
        raise ValueError("the state's metadata is missing")
    return metadata


def compare_shapes(found: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> list[str]:
    """Lines that say which arrays are missing, surplus or of another shape; none if all fit."""
    lines = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    lines += [f"surplus: {name} {found[name]}" for name in found if name not in wanted]
    lines += [
        f"misshapen: {name} {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return lines


def flat_shapes(tree: Any) -> dict[str, tuple]:
    """Path -> shape of each array of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class _DamagedError(Exception):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns what Orbax raises for damaged files into `_DamagedError`."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise _DamagedError(_in_short(error)) from error
    except Exception as error:
        if type(error) is not Exception:  # a failed checksum is a plain one
            raise
        raise _DamagedError(_in_short(error)) from error


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:120]}".partition("\n")[0]
