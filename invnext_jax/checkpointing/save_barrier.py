"""Whether a save of several processes succeeded: all say how their part ended, all learn the same.

Orbax has processes wait for each other behind a save, at barriers that one of them never reaches if
its own part fails. `Outcome` stands in their place: process 0 alone waits, until all have said how
they fared; then it finishes the checkpoint, or not, and tells.
"""

import concurrent.futures
import sys
import threading
from typing import Any

import jax
import orbax.checkpoint as ocp

from invnext_jax.errors import summarize_error
from invnext_jax.multihost import consensus, distributed

# What Orbax raises for a disk that is full, a folder that is gone, a host that is late.
SAVE_ERRORS = (OSError, ValueError, RuntimeError)


class SaveBarrier:
    """Of one save; made by all processes when it begins.

    Args:
        step: the step that is saved.
    """

    def __init__(self, step: int):
        self._alone = jax.process_count() == 1
        self._caller = threading.current_thread()
        self._round = (
            None if self._alone else consensus.HostExchange(f"the end of the save of step {step}")
        )

    def at_barrier(self, *, key: str, timeout_ms: int) -> None:
        """What Orbax calls instead of its own barriers (`AsyncOptions.barrier_sync_fn`)."""
        if self._alone or threading.current_thread() is self._caller:  # nothing has begun
            return
        error = sys.exception()  # Orbax comes by in a `finally` too
        if error is not None:
            self.fail(error)
        elif "async_write_complete" in key:
            self._round.say("")
            if jax.process_index() == 0:
                self._collect(timeout_ms / 1000)
        elif "async_commit_complete" in key and jax.process_index() == 0:
            self._round.conclude("")

    def _collect(self, timeout_seconds: float) -> None:
        parts = self._round.collect(timeout_seconds)
        failed = sorted(i for i in parts if parts[i])
        failures = [f"{distributed.describe_process(i)}: {parts[i]}" for i in failed]
        if failures:
            self._round.conclude("; ".join(failures))
            raise OSError(failures[0])  # so that Orbax does not finish the checkpoint

    def fail(self, error: BaseException) -> None:
        """This process's part has failed; a second word on it does not count."""
        if self._alone:
            return
        self._round.say(summarize_error(error))
        if jax.process_index() == 0:
            self._round.conclude(f"{distributed.describe_process(0)}: {summarize_error(error)}")

    def result(self, error: Exception | None) -> str:
        """Why the save failed, "" if it did not; the same in all processes.

        Args:
            error: what it ended with here, if anything.

        Raises:
            UserError: process 0 does not tell.
        """
        if error is not None:
            self.fail(error)
        if self._alone:
            return "" if error is None else summarize_error(error)
        return self._round.result(2 * consensus.WAIT_SECONDS)


class _Failed(concurrent.futures.Future):
    """A write that has failed already."""

    def __init__(self, error: Exception):
        super().__init__()
        self.set_exception(error)


def defer_failures(handler: ocp.CheckpointHandler) -> ocp.CheckpointHandler:
    """Has a handler fail in the background alone, where `Outcome` learns of it.

    In the foreground, Orbax waits on the devices for all processes.
    """
    save = handler.async_save

    async def async_save(*args: Any, **kwargs: Any) -> list:
        try:
            return await save(*args, **kwargs)
        except SAVE_ERRORS as error:
            return [_Failed(error)]

    handler.async_save = async_save
    return handler
