"""Checkpoints: state, position in the data and the run's record, written in the background.

A run's checkpoints lie in `<workdir>/checkpoints/<step>`, each with three items: `state`, `data`
(JSON: the position in the data, one for all processes) and `meta` (JSON, see
`provenance.describe_run`), and with their sums (see `integrity`).
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from invnext_jax.errors import UserError
from invnext_jax.runtime import integrity, provenance
from invnext_jax.runtime.checkpoint import FOLDER, item_handlers, metadata, probe
from invnext_jax.runtime.integrity import DamagedError, damage
from invnext_jax.runtime.retention import Kept
from invnext_jax.runtime.state import TrainState, compare_shapes, flat_shapes
from invnext_jax.runtime.workdir import Workdir

_TIMEOUT_SECONDS = 1200  # for a save of several processes
# What Orbax raises for a disk that is full, a folder that is gone, a host that is late.
_SAVE_ERRORS = (OSError, ValueError, RuntimeError)


class Checkpointer:
    """Saves and restores one run.

    Args:
        workdir: the run's folder.
        config: the run's whole config; `config.checkpoint` says what is kept.
        manifest_sha256: of its manifests, see `provenance.describe_run`.
        init_from_step: step of the checkpoint that `config.init_from` gave, if it names one.
    """

    def __init__(
        self,
        workdir: Workdir,
        config: ml_collections.ConfigDict,
        manifest_sha256: str,
        init_from_step: int | None = None,
    ):
        self._workdir = workdir
        self._folder = workdir.path / FOLDER
        self._record = provenance.describe_run(config, manifest_sha256, init_from_step)
        self._kept = Kept(config.checkpoint, self._folder)
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=item_handlers(ocp.StandardCheckpointHandler()),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                async_options=ocp.AsyncOptions(
                    # Orbax takes time from the clock of the day, which may jump. Alone, nobody is
                    # waited for.
                    timeout_secs=_TIMEOUT_SECONDS if jax.process_count() > 1 else 10**8,
                    post_finalization_callback=self._write_sums,
                ),
            ),
        )
        self._under_way = None  # step that is being written
        self._bytes = 0  # of the last checkpoint
        self.saved_step: int | None = None  # newest one that is known to be on the disk
        # Why the run that made the newest checkpoint was aborted, if it was.
        self.mark = self._next_mark = ""

    @property
    def folder(self) -> pathlib.Path:
        """Where the checkpoints lie."""
        return self._folder

    def changed_fields(self, saved: dict[str, Any]) -> list[str]:
        """What this run changes of a saved config and may not, see `provenance.differences`."""
        return provenance.differences({**self._record, "config": saved}, self._record)

    def save(
        self, step: int, state: TrainState, position: Any, *, score: float | None = None, mark=""
    ) -> None:
        """Starts to save what stands after `step` steps; does nothing if it is saved already.

        Returns as soon as the arrays are copied off the devices, so the state may be donated then.
        What cannot be written is told; the run goes on, and the next save tries again.

        Args:
            step: steps done.
            state: what they made.
            position: state of the data iterator that has delivered exactly their batches.
            score: value of `config.checkpoint.best_metric`, if known.
            mark: why the run is aborted, if it is.
        """
        self.wait()
        if step == self._manager.latest_step():
            return
        trouble = self._find_trouble(self._bytes or sum(x.nbytes for x in jax.tree.leaves(state)))
        if trouble:
            self._tell_failure(step, trouble)
            return
        self._under_way, self._next_mark = step, mark
        meta = {**self._record, "step": step, "sums": True, "aborted": mark}
        try:
            self._kept.note(step, score)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                    meta=ocp.args.JsonSave({**meta, "score": self._kept.as_json(step)}),
                ),
                force=True,
            )
        except _SAVE_ERRORS as error:
            self._fail(error)

    def _find_trouble(self, needed: int) -> str:
        """Asked before each save, by all processes: none may save where another one does not."""
        trouble, is_new = "", False
        if jax.process_index() == 0:
            trouble = self._workdir.find_trouble(needed)
            is_new = not trouble and not self._folder.is_dir()
            if is_new:
                self._folder.mkdir(exist_ok=True)
        if jax.process_count() > 1:
            flags = np.array([bool(trouble), is_new])
            bad, is_new = multihost_utils.broadcast_one_to_all(flags).tolist()
            trouble = trouble or ("process 0 cannot write" if bad else "")
        if is_new:
            self._manager.reload()
        return trouble

    def _write_sums(self) -> None:
        """Called by Orbax, in process 0 and in its thread, before the folder gets its last name."""
        step = str(self._under_way)
        found = list(self._folder.glob(step + integrity.HALF_WRITTEN + "*"))
        self._bytes = integrity.write_sums(found[0] if found else self._folder / step)

    def wait(self) -> None:
        """Waits until what is under way is on the disk, or has failed."""
        try:
            self._manager.wait_until_finished()
        except _SAVE_ERRORS as error:
            self._fail(error)
        if self._under_way is not None:
            self.saved_step, self._under_way = self._under_way, None
            self.mark = self._next_mark

    def _fail(self, error: Exception) -> None:
        step, self._under_way = self._under_way, None
        self._tell_failure(step, integrity.in_short(error))
        integrity.remove_half_written(self._folder)
        self._manager.reload()

    def _tell_failure(self, step: int, reason: str) -> None:
        if jax.process_index() != 0:
            return
        try:
            free = f"{shutil.disk_usage(self._workdir.path).free:,} bytes free"
        except OSError as error:
            free = str(error.strerror)
        last = "none yet" if self.saved_step is None else f"step {self.saved_step}"
        logging.warning(
            "step %d could not be saved in %s (%s; %s); the newest checkpoint of this process is "
            "%s; training goes on and the next save tries again",
            step,
            self._folder,
            reason,
            free,
            last,
        )

    def finish(self, step: int, state: TrainState, position: Any, score: float | None) -> None:
        """Saves the end of a run and waits for it; tries twice.

        Raises:
            UserError: it cannot be saved.
        """
        for _ in range(2):
            self.save(step, state, position, score=score)
            self.wait()
            if self._manager.latest_step() == step:
                return
        newest = self._manager.latest_step()
        raise UserError(
            f"step {step} could not be saved in {self._folder}: make room or mend the folder; the "
            "same command "
            + (
                "starts anew, for nothing was ever saved"
                if newest is None
                else f"goes on after step {newest}"
            )
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
        for left in integrity.remove_half_written(self._folder):
            logging.warning("%s was half-written when its run was killed: it is removed", left)
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                state = self._restore_step(step, abstract, data_iter)
            except DamagedError as error:
                logging.warning("checkpoint %s is damaged: %s", self._folder / str(step), error)
                damaged.append(step)
                continue
            if damaged:
                integrity.set_aside(self._folder, damaged)
                self._manager.reload()
            self.saved_step = step
            return state
        if steps or list(self._folder.glob("damaged-*")):
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self._folder} is intact; "
                "move that folder away to start afresh"
            )
        return None

    def _restore_step(
        self, step: int, abstract: TrainState, data_iter: Iterator[Any]
    ) -> TrainState:
        folder = self._folder / str(step)
        has_sums = integrity.verify_sums(folder)
        with damage(folder, has_sums):
            record = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
            if record.get("format_version") != provenance.FORMAT_VERSION:
                raise UserError(
                    f"the checkpoint {self._folder / str(step)} was made by another version of "
                    "the package; choose another --workdir, and name this run in config.init_from"
                )
            integrity.check_sums_are_there(record, has_sums)
            changed = provenance.differences(record, self._record)
        if changed:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} was made with another config; restore "
                "these values, or choose another --workdir:\n  " + "\n  ".join(changed)
            )
        with damage(folder, has_sums):
            probe(self._folder, step)
            wanted = self._fit_fields(step, abstract)
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore()
            )
            found = self._manager.restore(step, args=items)
        data_iter.set_state(found["data"])
        self.mark = record.get("aborted", "")
        return abstract.replace(**found["state"])

    def _fit_fields(self, step: int, abstract: TrainState) -> dict[str, Any]:
        """The state's fields to read: an empty one that is newer than the checkpoint is left out.

        Tells damage from a state that another version of the code made.
        """
        on_disk = metadata(self._manager, step)
        fields = {
            field.name: getattr(abstract, field.name) for field in dataclasses.fields(abstract)
        }
        fields = {name: tree for name, tree in fields.items() if name in on_disk or tree != {}}
        if fields.keys() != set(on_disk):
            raise UserError(
                f"the state in {self._folder / str(step)} has {', '.join(sorted(on_disk))}; this "
                f"run has {', '.join(sorted(fields))}: choose another --workdir, and name that run "
                "in config.init_from"
            )
        saved = flat_shapes(on_disk["params"])
        wanted = flat_shapes(abstract.params)
        changed = compare_shapes(saved, wanted)
        if changed:
            raise UserError(
                f"the parameters in {self._folder / str(step)} do not fit this version of the "
                "model; choose another --workdir:\n  " + "\n  ".join(changed)
            )
        return fields

    def close(self) -> None:
        """Waits, then frees the threads."""
        self.wait()
        self._manager.close()
