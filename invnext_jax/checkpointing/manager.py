"""Checkpoints: state, position in the data and the run's record, written in the background.

A run's checkpoints lie in `<workdir>/checkpoints/<step>`, each with three items: `state`, `data`
(JSON: the position in the data, one for all processes) and `meta` (JSON, see
`run_metadata.describe_run`), and with their sums (see `integrity`).
"""

import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging

from invnext_jax.checkpointing import checksums, restore, run_metadata
from invnext_jax.checkpointing.checksums import CorruptCheckpointError
from invnext_jax.checkpointing.reader import FOLDER
from invnext_jax.checkpointing.retention import RetentionPolicy
from invnext_jax.checkpointing.save_barrier import SAVE_ERRORS, SaveBarrier, defer_failures
from invnext_jax.checkpointing.workdir_lock import Workdir
from invnext_jax.errors import UserError
from invnext_jax.multihost import consensus
from invnext_jax.training.state import TrainState


class Checkpointer:
    """Saves and restores one run.

    Args:
        workdir: the run's folder.
        config: the run's whole config; `config.checkpoint` says what is kept.
        manifest_sha256: of its manifests, see `run_metadata.describe_run`.
        init_from_step: step of the checkpoint that `config.init_from` gave, if it names one.

    Raises:
        UserError: the folder of the checkpoints cannot be made.
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
        self._record = run_metadata.describe_run(config, manifest_sha256, init_from_step)
        self._kept = RetentionPolicy(config.checkpoint, self._folder)
        with consensus.all_hosts_agree(f"the folder {self._folder}"):
            self._make_folder()
        self._outcome = SaveBarrier(0)
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "state": defer_failures(ocp.StandardCheckpointHandler()),
                "data": ocp.JsonCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=self._kept,
                # Where processes still wait for each other, no device takes part, and not for ever.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=set(range(jax.process_count())),
                    barrier_sync_key_prefix="invnext_jax",
                ),
                async_options=ocp.AsyncOptions(
                    # Orbax takes time from the clock of the day, which may jump. Alone, nobody is
                    # waited for.
                    timeout_secs=int(consensus.WAIT_SECONDS) if jax.process_count() > 1 else 10**8,
                    barrier_sync_fn=lambda **place: self._outcome.at_barrier(**place),
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
        """What this run changes of a saved config and may not, see `run_metadata.differences`."""
        return run_metadata.config_differences({**self._record, "config": saved}, self._record)

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
        with consensus.all_hosts_agree(f"the save of step {step}") as told:
            if jax.process_index() == 0:
                told.value = self._look_around(step, sum(x.nbytes for x in jax.tree.leaves(state)))
        is_saved, is_new, trouble = told.value
        if is_new:
            self._manager.reload()
        if trouble:
            self._tell_failure(step, trouble)
        if is_saved:
            self.saved_step = step
        if trouble or is_saved:
            return
        self._under_way, self._next_mark, self._outcome = step, mark, SaveBarrier(step)
        meta = {**self._record, "step": step, "sums": True, "aborted": mark}
        try:
            self._kept.note(step, score)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                    meta=ocp.args.JsonSave({**meta, "score": self._kept.config_to_json(step)}),
                ),
                force=True,
            )
        except SAVE_ERRORS as error:
            self._settle(error)

    def _look_around(self, step: int, needed: int) -> tuple[bool, bool, str]:
        """In process 0: is the step saved, is the folder another one, why can it not be written."""
        if step == self._manager.latest_step():
            return True, False, ""
        trouble = self._workdir.find_trouble(self._bytes or needed)
        return False, not trouble and self._make_folder(), trouble

    def _make_folder(self) -> bool:
        """Makes the folder in process 0 if it is not there; says whether it was not."""
        is_new = jax.process_index() == 0 and not self._folder.is_dir()
        if is_new:
            self._folder.mkdir(parents=True, exist_ok=True)
        return is_new

    def _write_sums(self) -> None:
        """Called by Orbax, in process 0 and in its thread, before the folder gets its last name."""
        step = str(self._under_way)
        found = list(self._folder.glob(step + checksums.HALF_WRITTEN + "*"))
        self._bytes = checksums.write_checksums(found[0] if found else self._folder / step)

    def wait(self) -> None:
        """Waits until what is under way is on the disk, or has failed; all processes learn which.

        Raises:
            UserError: process 0 does not tell.
        """
        error = None
        try:
            self._manager.wait_until_finished()
        except SAVE_ERRORS as found:
            error = found
        if self._under_way is not None:
            self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        step, self._under_way = self._under_way, None
        reason = self._outcome.result(error)
        if not reason:
            self.saved_step, self.mark = step, self._next_mark
            if error is not None:
                logging.warning("old checkpoints in %s stay there: %s", self._folder, error)
                self._manager.reload()
            return
        self._tell_failure(step, reason)
        with consensus.all_hosts_agree(f"the end of the failed save of step {step}"):
            pass  # nobody writes any more
        checksums.remove_incomplete(self._folder)
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
            "step %d could not be saved in %s (%s; %s); the newest checkpoint is %s; "
            "training goes on and the next save tries again",
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
            if self.saved_step == step:
                return
        left = "starts anew, for nothing was ever saved"
        if self.saved_step is not None:
            left = f"goes on after step {self.saved_step}"
        raise UserError(
            f"step {step} could not be saved in {self._folder}: make room or mend the folder; the "
            f"same command {left}"
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
        with consensus.all_hosts_agree(f"the checkpoints in {self._folder}") as told:
            for left in checksums.remove_incomplete(self._folder):
                logging.warning("%s was half-written when its run was killed: it is removed", left)
            steps = sorted(self._manager.all_steps(), reverse=True)
            told.value = steps, any(self._folder.glob("damaged-*"))
        (steps, was_damaged), damaged = told.value, []
        for step in steps:
            try:
                found = restore.restore_step(self._folder / str(step), self._record, abstract)
            except CorruptCheckpointError as error:
                logging.warning("checkpoint %s is damaged: %s", self._folder / str(step), error)
                damaged.append(step)
                continue
            if damaged:
                with consensus.all_hosts_agree("the renaming of damaged checkpoints"):
                    checksums.rename_corrupt(self._folder, damaged)
                self._manager.reload()
            data_iter.set_state(found.position)
            self.saved_step, self.mark = step, found.mark
            return found.state
        if steps or was_damaged:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self._folder} is intact; "
                "move that folder away to start afresh"
            )
        return None

    def close(self) -> None:
        """Waits, then frees the threads."""
        self.wait()
        self._manager.close()
