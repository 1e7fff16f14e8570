"""Workers that are replaced when they hang, die or do not start."""

import threading
from collections.abc import Callable
from typing import Any

from invnext_jax.data.workers import ClosedError, TimeLimitError, WorkerDiedError, WorkerStartError

MAX_STARTS = 3  # in a row that fail; more end the run


class SupervisedWorker:
    """A place for a worker, and for another one when that hangs or dies.

    Args:
        make_worker: Makes a worker.
        seconds: Longest time of one call.
        tries: Workers that may die over a task before it is given up.

    Attributes:
        restarts: Workers that were replaced.
    """

    def __init__(self, make_worker: Callable[[], Any], seconds: float, tries: int = 2):
        self._make_worker, self._seconds, self._tries = make_worker, seconds, tries
        self._lock, self._closed = threading.Lock(), False
        self._failed_starts, self._peak_memory, self.restarts = 0, 0, 0
        self._worker = make_worker()

    def call(self, *task: Any) -> Any:
        """The result of a task, which is tried again if its worker dies.

        Raises:
            TimeLimitError: It takes too long.
            WorkerDiedError: `tries` workers died over it.
            WorkerStartError: Workers do not start.
            ClosedError: The seat is closed meanwhile.
        """
        deaths = 0
        while True:
            try:
                result = self._worker.call(task, self._seconds)
            except TimeLimitError:
                self._replace()
                raise
            except WorkerDiedError:
                self._replace()
                deaths += 1
                if deaths == self._tries:
                    raise
            except WorkerStartError:
                self._replace()
                self._failed_starts += 1
                if self._failed_starts == MAX_STARTS:
                    raise
            else:
                self._failed_starts = 0
                return result

    def _replace(self) -> None:
        self.peak_memory()
        with self._lock:
            if self._closed:
                raise ClosedError
            self.restarts += 1
        self._worker.end()
        worker = self._make_worker()
        with self._lock:
            self._worker, closed = worker, self._closed
        if closed:
            worker.end()
            raise ClosedError

    def peak_memory(self) -> int:
        """The most bytes that any of its workers held."""
        self._peak_memory = max(self._peak_memory, self._worker.memory())
        return self._peak_memory

    def close(self) -> None:
        """Ends the worker; no other one follows."""
        with self._lock:
            self._closed = True
            worker = self._worker
        worker.end()
