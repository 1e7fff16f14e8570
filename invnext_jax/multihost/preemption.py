"""Handles the signals SIGTERM, SIGINT and SIGHUP, after which a run saves and stops.

A second SIGTERM or SIGINT ends the process immediately. TPUs and batch systems announce a
preemption with SIGTERM. The end of an ssh session sends SIGHUP.
"""

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator

from invnext_jax.command_output import redirect_output_to_devnull

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
