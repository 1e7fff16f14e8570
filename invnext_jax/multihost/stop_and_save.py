"""Decides after which step a run saves (based on a timer) or stops (after a signal).

SIGTERM, SIGINT or SIGHUP makes a run save and stop. A second SIGTERM or SIGINT ends the process
immediately. TPUs and batch systems send SIGTERM before they preempt a run. The end of an ssh
session sends SIGHUP. All hosts save or stop after the same step.
"""

import contextlib
import os
import signal
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.command_output import redirect_output_to_devnull

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EVERY_STEPS = 4  # steps between two reductions of the flags in a multi-process run


class StopRequestedError(Exception):
    """Raised inside `Preemption.raise_on_signal` by the first signal."""


class Preemption:
    """Context manager in which the first signal sets `signal_name` instead of ending the process.

    The training loop reads `requested` between steps. Python allows signal handlers only in the
    main thread; in other threads, this class does nothing. If SIGHUP is already ignored, for
    example under nohup, it stays ignored.
    """

    def __init__(self):
        self.signal_name = ""
        self._raises = False
        self._old_handlers = {}

    @property
    def requested(self) -> bool:
        """Whether the run should save and stop."""
        return bool(self.signal_name)

    def describe_stop(self, step: int, total_steps: int, folder: Any) -> str:
        """Returns a sentence about a run that was stopped after `step` steps, saved in `folder`."""
        if not step:
            return f"{self.signal_name}: stopped before the first step"
        return (
            f"{self.signal_name}: stopped after step {step} of {total_steps}, "
            f"saved in {folder}; the same command resumes the run"
        )

    @contextlib.contextmanager
    def raise_on_signal(self) -> Iterator[None]:
        """Context manager in which a signal interrupts the current operation with an exception.

        Raises:
          StopRequestedError: the first signal arrives in the block or has arrived before it.
        """
        self._raises = True
        try:
            if self.requested:
                raise StopRequestedError
            yield
        finally:
            self._raises = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            for number in SIGNALS[: -1 if ignores_hangup else None]:
                self._old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old_handlers.items():
            # The handler is None if it was not set by Python, as in the case of jax.distributed.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            redirect_output_to_devnull()
            if self.requested:  # the kernel and the shell may both send SIGHUP for one hangup
                return
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_name = signal.Signals(number).name
        if self._raises:
            raise StopRequestedError


class HostFlags(NamedTuple):
    """Whether to stop and whether to save, for one process or for all of them."""

    stop: bool
    save: bool


class StopAndSave:
    """Decides between steps whether all processes stop or save.

    In a multi-process run, the stop and save flags are all-reduced (max) on the devices. This small
    computation is queued behind the current step. Its result is read one step later, when it is
    ready, so that no process waits. A single process uses its flags directly.

    Args:
      preemption: the object that receives the signals of this process.
      every_minutes: minutes between timed saves, measured by process 0. 0 disables timed saves.
      mesh: the run's mesh.
    """

    def __init__(self, preemption: Preemption, every_minutes: float, mesh: Mesh):
        self._preemption, self._seconds, self._mesh = preemption, 60 * every_minutes, mesh
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._pending = None  # reduced flags that have not been read yet
        self._reduce = jax.jit(lambda x: jnp.max(x, axis=0), out_shardings=NamedSharding(mesh, P()))

    def reset_timer(self, step: int) -> None:
        """Resets the save timer. Call it after the checkpoint of `step` is started or restored."""
        self._saved_at, self._saved_step = time.monotonic(), step

    def poll(self, step: int) -> HostFlags:
        """Returns what to do after `step`. Every process must call it after each step.

        The save flag is never set for the step that was last saved or restored.
        """
        flags = self._agreed_flags(step)
        return flags._replace(save=flags.save and step > self._saved_step)

    def _agreed_flags(self, step: int) -> HostFlags:
        has_timer = jax.process_index() == 0 and self._seconds > 0
        own_flags = HostFlags(
            self._preemption.requested,
            has_timer and time.monotonic() - self._saved_at >= self._seconds,
        )
        if jax.process_count() == 1:
            return own_flags
        agreed = HostFlags(False, False)
        if self._pending is not None:
            agreed = HostFlags(*np.asarray(jax.device_get(self._pending)).astype(bool).tolist())
            self._pending = None
        if step % EVERY_STEPS == 0:
            self._pending = self._all_reduce(own_flags)
        return agreed

    def _all_reduce(self, own_flags: HostFlags) -> jax.Array:
        rows = sum(d.process_index == jax.process_index() for d in self._mesh.devices.flat)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        local = np.tile(np.array(own_flags, np.int32), (rows, 1))
        reduced = self._reduce(jax.make_array_from_process_local_data(sharding, local))
        # On CPU devices, two concurrent computations can deadlock.
        if self._mesh.devices.flat[0].platform == "cpu":
            reduced.block_until_ready()
        return reduced
