"""SIGTERM, SIGINT and SIGHUP ask a run to save and end; a second of the first two ends it at once.

A preemption notice of a TPU or of a batch system is a SIGTERM, the end of an ssh session a SIGHUP.
"""

import contextlib
import os
import signal
import stat
import threading
import types
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequestedError(Exception):
    """Raised out of `Preemption.waiting` by the first signal."""


class Preemption:
    """Within `with Preemption() as preemption`, the first signal sets `preemption.signal_name`.

    The loop asks `requested` between steps. Outside the main thread, where Python allows no
    handlers, nothing is ever requested. A SIGHUP that is ignored, as under nohup, stays so.
    """

    def __init__(self):
        self.signal_name = ""
        self._waiting = False
        self._before = {}

    @property
    def requested(self) -> bool:
        """Whether the run shall save and end."""
        return bool(self.signal_name)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, a signal does not wait for what is under way but raises.

        Raises:
            StopRequestedError: the first signal comes, or has come.
        """
        self._waiting = True
        try:
            if self.requested:
                raise StopRequestedError
            yield
        finally:
            self._waiting = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            for number in SIGNALS[: -1 if ignores_hangup else None]:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set by Python, as that of jax.distributed.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            _leave_terminal()
            if self.requested:  # kernel and shell may both tell of one hangup
                return
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_name = signal.Signals(number).name
        if self._waiting:
            raise StopRequestedError


def _leave_terminal() -> None:
    """After a hangup nobody reads what is not a file; a line written there may be an error."""
    for output in (1, 2):
        with contextlib.suppress(OSError):  # it is closed already
            if not stat.S_ISREG(os.fstat(output).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)
