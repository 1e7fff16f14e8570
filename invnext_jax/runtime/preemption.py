"""SIGTERM and SIGINT ask a run to save and end; a second one ends it at once."""

import os
import signal
import threading
import types

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Within `with Preemption() as preemption`, the first signal sets `preemption.signal_name`.

    The loop asks `requested` between steps. Outside the main thread, where Python allows no
    handlers, nothing is ever requested.
    """

    def __init__(self):
        self.signal_name = ""
        self._before = {}

    @property
    def requested(self) -> bool:
        """Whether the run shall save and end."""
        return bool(self.signal_name)

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal_name = signal.Signals(number).name
