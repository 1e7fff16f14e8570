"""Barrier at the end of a save: all processes report to process 0 and get the same result.

During a save, Orbax makes the processes wait for each other at barriers, which a process whose
write fails never reaches. `SaveBarrier` replaces these barriers. Only process 0 waits, until each
process has reported whether its write succeeded. Process 0 finishes the checkpoint if all writes
succeeded, and publishes the result.
"""

import concurrent.futures
import sys
import threading
from typing import Any

import jax
import orbax.checkpoint as ocp

from invnext_jax.checkpointing import storage
from invnext_jax.checkpointing.save_errors import describe_cause
from invnext_jax.multihost import consensus, distributed

# Errors that Orbax raises if the disk is full, a folder is missing or a process does not arrive in
# time.
SAVE_ERRORS = (OSError, ValueError, RuntimeError, *storage.CLIENT_ERRORS)


class SaveBarrier:
    """The barrier of one save. Every process creates it when the save begins.

    Args:
      step: the step of the checkpoint.
    """

    def __init__(self, step: int):
        self._single = jax.process_count() == 1
        self._caller = threading.current_thread()
        self._exchange = (
            None if self._single else consensus.HostExchange(f"the end of the save of step {step}")
        )

    def at_barrier(self, *, key: str, timeout_ms: int) -> None:
        """Replaces Orbax's barriers when passed as `AsyncOptions.barrier_sync_fn`."""
        # Before the write, Orbax uses barriers in the thread that called `save`; these are skipped.
        if self._single or threading.current_thread() is self._caller:
            return
        error = sys.exception()  # set if Orbax calls this in a `finally` block after an error
        if error is not None:
            self.report_failure(error)
        elif "async_write_complete" in key:
            self._exchange.report("")
            if jax.process_index() == 0:
                self._gather(timeout_ms / 1000)
        elif "async_commit_complete" in key and jax.process_index() == 0:
            self._exchange.publish("")

    def _gather(self, timeout_seconds: float) -> None:
        reports = self._exchange.gather(timeout_seconds)
        failures = [
            f"{distributed.describe_process(process)}: {reports[process]}"
            for process in sorted(reports)
            if reports[process]
        ]
        if failures:
            self._exchange.publish("; ".join(failures))
            raise OSError(failures[0])  # so that Orbax does not finish the checkpoint

    def report_failure(self, error: BaseException) -> None:
        """Reports that this process's write failed, unless it has already reported."""
        if self._single:
            return
        self._exchange.report(describe_cause(error))
        if jax.process_index() == 0:
            self._exchange.publish(f"{distributed.describe_process(0)}: {describe_cause(error)}")

    def result(self, error: Exception | None, is_finished: bool) -> str:
        """Returns the reason why the save failed, or "". All processes get the same result.

        Args:
          error: the error of this process's write, or None if it succeeded.
          is_finished: whether the checkpoint is finished despite an error. In a single-process
              run, the error then comes from the removal of old checkpoints.

        Raises:
          UserError: process 0 does not publish a result in time.
        """
        if error is not None:
            self.report_failure(error)
        if self._single:
            return "" if error is None or is_finished else describe_cause(error)
        return self._exchange.result(2 * consensus.WAIT_SECONDS)


class _FailedWrite(concurrent.futures.Future):
    """A write that has already failed."""

    def __init__(self, error: Exception):
        super().__init__()
        self.set_exception(error)


def defer_failures(handler: ocp.CheckpointHandler) -> ocp.CheckpointHandler:
    """Makes a handler raise its errors in the background thread, where `SaveBarrier` reports them.

    In the caller's thread, Orbax waits for all processes with a collective, so a process that
    raises there would block the others.
    """
    save = handler.async_save

    async def async_save(*args: Any, **kwargs: Any) -> list:
        try:
            return await save(*args, **kwargs)
        except SAVE_ERRORS as error:
            return [_FailedWrite(error)]

    handler.async_save = async_save
    return handler
