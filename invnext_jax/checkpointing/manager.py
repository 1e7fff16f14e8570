"""Checkpoints of a run: state, data position and metadata, written in the background.

A checkpoint is the folder `<workdir>/checkpoints/<step>`. It has three items: `state`, `data`
(JSON: the data position, shared by all processes) and `meta` (JSON, see
`run_metadata.describe_run`). It also has checksums (see `checksums`).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from absl import logging

from invnext_jax.checkpointing import checksums, reader, restore, retention, run_metadata, storage
from invnext_jax.checkpointing.checksums import CorruptCheckpointError
from invnext_jax.checkpointing.save_barrier import SAVE_ERRORS, SaveBarrier, defer_failures
from invnext_jax.checkpointing.save_errors import describe_cause, first_problem, suppress_tracebacks
from invnext_jax.checkpointing.workdir import BucketWorkdir, Workdir, check_rename
from invnext_jax.errors import UserError
from invnext_jax.multihost import consensus
from invnext_jax.training.state import TrainState


class Checkpointer:
    """Saves and restores one run.

    Attributes:
      record: the run's metadata, which `restore` updates.
      saved_step: step of the newest checkpoint known to be on disk, or None.
      abort_reason: reason why the run was aborted when it saved that checkpoint, or "".

    Args:
      workdir: the run's folder.
      config: the run's config. `config.checkpoint` specifies which checkpoints to keep.
      record: the run's metadata, see `run_metadata.describe_run`.

    Raises:
      UserError: the checkpoint folder cannot be created.
    """

    def __init__(
        self,
        workdir: Workdir | BucketWorkdir,
        config: ml_collections.ConfigDict,
        record: Mapping[str, Any],
    ):
        self._workdir, self.record = workdir, record
        self._folder = workdir.path / reader.CHECKPOINTS_FOLDER
        saved = retention.read_metadata(self._folder, reader.finished_steps(self._folder))
        self._scores = retention.BestScores(config.checkpoint, saved)
        self._latest = retention.LatestApplied(config.checkpoint.keep_last, saved)
        self._undeletable = retention.Undeletable(self._folder)
        with consensus.all_hosts_agree(f"the folder {self._folder}"):
            self._create_folder()
            if jax.process_index() == 0 and not storage.is_bucket(self._folder):
                check_rename(self._folder)
        self._barrier = SaveBarrier(0)
        suppress_tracebacks()
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "state": defer_failures(ocp.StandardCheckpointHandler()),
                "data": ocp.JsonCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=retention.make_policy(
                    config.checkpoint, self._latest, self._scores, self._undeletable
                ),
                # With `active_processes`, the remaining barriers use the key-value store, which has
                # a timeout, instead of the devices.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=set(range(jax.process_count())),
                    barrier_sync_key_prefix="invnext_jax",
                ),
                async_options=ocp.AsyncOptions(
                    # Orbax measures its timeout with the wall clock, which may jump. A single
                    # process does not wait for other processes, so it needs no timeout.
                    timeout_secs=int(consensus.WAIT_SECONDS) if jax.process_count() > 1 else 10**8,
                    # If a folder cannot be created in the background, threads wait for it for 5
                    # minutes, and the process cannot exit. With several processes, the others would
                    # instead wait in the foreground for process 0.
                    create_directories_asynchronously=jax.process_count() > 1,
                    barrier_sync_fn=lambda **arguments: self._barrier.at_barrier(**arguments),
                    post_finalization_callback=self._write_checksums,
                ),
            ),
        )
        self._pending_step = None  # step of the checkpoint that is being written
        self._pending_abort_reason = ""
        self._last_problem = ""  # reason for the last failed save
        self._checkpoint_bytes = 0  # size of the last checkpoint
        self.saved_step: int | None = None
        self.abort_reason = ""

    @property
    def folder(self) -> storage.Path:
        """The checkpoint folder."""
        return self._folder

    def changed_fields(self, saved: dict[str, Any]) -> list[str]:
        """Returns the config fields that must match the saved config but differ in this run."""
        return run_metadata.config_differences({**self.record, "config": saved}, self.record)

    def save(
        self,
        step: int,
        state: TrainState,
        position: Any,
        *,
        score: float | None = None,
        abort_reason: str = "",
    ) -> None:
        """Starts saving a checkpoint, unless this step has already been saved.

        Returns as soon as the arrays have been copied from the devices. The caller may then donate
        the state. If the checkpoint cannot be written, a warning is logged and training continues.
        The next save tries again.

        Args:
          step: the number of completed steps.
          state: the state after `step` steps.
          position: state of the data iterator after exactly `step` batches.
          score: value of `config.checkpoint.best_metric`, or None if unknown.
          abort_reason: reason why the run is aborted. "" if it is not aborted.
        """
        self.wait()
        with consensus.all_hosts_agree(f"the save of step {step}") as broadcast:
            if jax.process_index() == 0:
                state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
                broadcast.value = self._prepare_save(step, state_bytes)
        is_saved, is_new_folder, problem = broadcast.value
        if is_new_folder:
            self._manager.reload()
        if problem:
            self._log_failure(step, problem)
        if is_saved:
            self.saved_step = step
        if problem or is_saved:
            return
        self._pending_step, self._pending_abort_reason = step, abort_reason
        self._barrier = SaveBarrier(step)
        skipped_in_row = int(state.skipped_in_row)
        meta = {**self.record, "step": step, "sums": True, "aborted": abort_reason}
        meta["skipped_in_row"] = skipped_in_row
        try:
            self._scores.add(step, score, meta)
            self._latest.add(step, skipped_in_row)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                    meta=ocp.args.JsonSave({**meta, "score": self._scores.to_json(step)}),
                ),
                force=True,
            )
        except SAVE_ERRORS as error:
            self._finish_save(error)

    def _prepare_save(self, step: int, state_bytes: int) -> tuple[bool, bool, str]:
        """Checks that the checkpoint can be written (process 0 only).

        Returns:
          Whether the step has already been saved, whether the folder had to be created again, and
          the reason why the checkpoint cannot be written ("" if it can).
        """
        if step == self._manager.latest_step():
            return True, False, ""
        problem = self._workdir.write_error(self._checkpoint_bytes or state_bytes)
        return False, not problem and self._create_folder(), problem

    def _create_folder(self) -> bool:
        """Creates the folder if it is missing (process 0 only). Returns whether it was missing."""
        if is_new := jax.process_index() == 0 and not storage.is_dir(self._folder):
            storage.make_folder(self._folder)
        return is_new

    def _write_checksums(self) -> None:
        """Writes the checksums; called by Orbax in a thread of process 0 before the last rename."""
        step = str(self._pending_step)
        incomplete = list(self._folder.glob(step + storage.INCOMPLETE + "*"))
        self._checkpoint_bytes = checksums.write_checksums((incomplete or [self._folder / step])[0])

    def wait(self) -> None:
        """Waits for the pending save, if any."""
        error = None
        try:
            self._manager.wait_until_finished()
        except SAVE_ERRORS as raised:
            error = raised
        if self._pending_step is not None:
            self._finish_save(error)

    def _finish_save(self, error: Exception | None) -> None:
        step, self._pending_step = self._pending_step, None
        # The checksums are written before the checkpoint is finished.
        path = self._folder / str(step)
        is_finished = storage.exists(path / checksums.CHECKSUMS_FILE) and storage.is_finished(path)
        problem = self._barrier.result(error, is_finished)
        if not problem:
            self.saved_step, self.abort_reason = step, self._pending_abort_reason
            if error is not None:
                cause = describe_cause(error)
                self._undeletable.add(error)
                logging.warning("old checkpoints in %s cannot be removed: %s", self._folder, cause)
                self._manager.reload()
            return
        self._log_failure(step, problem)
        with consensus.all_hosts_agree(f"the end of the failed save of step {step}"):
            pass  # after this barrier, no process is writing
        checksums.remove_incomplete(self._folder)
        self._manager.reload()

    def _log_failure(self, step: int, problem: str) -> None:
        problem = self._last_problem = first_problem(self._last_problem, problem)
        if jax.process_index() != 0:
            return
        logging.warning(
            "step %d could not be saved in %s (%s%s); the newest checkpoint is %s; "
            "training continues and the next save tries again",
            step,
            self._folder,
            problem,
            self._workdir.describe_space(),
            "none yet" if self.saved_step is None else f"step {self.saved_step}",
        )

    def finish(self, step: int, state: TrainState, position: Any, score: float | None) -> None:
        """Saves the last checkpoint of a run and waits until it is written. Retries once.

        Raises:
          UserError: the checkpoint cannot be saved.
        """
        for _ in range(2):
            self.save(step, state, position, score=score)
            self.wait()
            if self.saved_step == step:
                return
        resume = "No checkpoint exists; the run starts from step 0."
        if self.saved_step is not None:
            resume = f"The same command continues from step {self.saved_step}."
        raise UserError(
            f"step {step} could not be saved in {self._folder} ({self._last_problem}): free disk "
            f"space, or make the folder writable. {resume}"
        )

    def restore(self, abstract: TrainState, data_iter: Iterator[Any]) -> TrainState | None:
        """Restores the newest intact checkpoint. Logs a warning for each damaged one.

        Args:
          abstract: shapes, dtypes and shardings of the state, on any mesh.
          data_iter: the run's data iterator. It is moved to the checkpoint's data position.

        Returns:
          The state, or None if the run has no checkpoint.

        Raises:
          UserError: the checkpoint has a different config, or no checkpoint is intact.
        """
        with consensus.all_hosts_agree(f"the checkpoints in {self._folder}") as broadcast:
            for path in checksums.remove_incomplete(self._folder):
                logging.warning("%s is incomplete because its run was killed; it was removed", path)
            steps = reader.finished_steps(self._folder)[::-1]
            names = [path.name for path in self._folder.iterdir()]
            broadcast.value = steps, any(name.startswith("damaged-") for name in names)
        (steps, was_damaged), damaged = broadcast.value, []
        for step in steps:
            try:
                restored = restore.restore_step(self._folder / str(step), self.record, abstract)
            except CorruptCheckpointError as error:
                logging.warning("checkpoint %s is damaged: %s", self._folder / str(step), error)
                damaged.append(step)
                continue
            if damaged:
                with consensus.all_hosts_agree("the renaming of damaged checkpoints"):
                    checksums.rename_corrupt(self._folder, damaged)
                self._manager.reload()
            data_iter.set_state(restored.position)
            self.saved_step, self.abort_reason = step, restored.abort_reason
            self.record = restored.record
            return restored.state
        if steps or was_damaged:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self._folder} is intact; "
                "move that folder away to start from step 0"
            )
        return None

    def close(self) -> None:
        """Waits for the pending save and closes Orbax's checkpoint manager."""
        self.wait()
        with contextlib.suppress(*SAVE_ERRORS):  # of a failed save, which `wait` has reported
            self._manager.close()
