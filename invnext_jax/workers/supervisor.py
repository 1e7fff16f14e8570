"""Replaces workers that hang or die."""

import threading
import time
from collections.abc import Callable
from typing import Any

from invnext_jax.workers.process_worker import WorkerDiedError, WorkerStartError
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError, WorkerClosedError

MAX_FAILED_STARTS = 3  # consecutive failed starts after which the run ends


class SupervisedWorker:
    """A worker that is replaced when it hangs, dies or does not start.

    Args:
      make_worker: Function that returns a new worker.
      timeout: Time limit per call in seconds.
      tries: Number of workers that may die while running the same task.

    Attributes:
      restarts: Number of replaced workers.
      busy_seconds: Time that the worker spent on tasks.
      read_seconds: Part of `busy_seconds` that the worker waited for storage.
    """

    def __init__(self, make_worker: Callable[[], Any], timeout: float, tries: int = 2):
        self._make_worker, self._timeout, self._tries = make_worker, timeout, tries
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._failed_starts, self._peak_memory, self.restarts = 0, 0, 0
        self.busy_seconds, self.read_seconds = 0.0, 0.0
        self._worker = make_worker()

    def __call__(self, *task: Any) -> Any:
        """Runs a task, and repeats it if its worker dies.

        Raises:
          TimeLimitError: The task exceeded the timeout, excluding the time of its reads.
          ReadStalledError: A read of the task exceeded the timeout.
          WorkerDiedError: `tries` workers died while running the task.
          WorkerStartError: Workers do not start.
          WorkerClosedError: `close` was called.
        """
        deaths = 0
        while True:
            try:
                result = self._measure_call(task)
            except (TimeLimitError, ReadStalledError):
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
                if self._failed_starts == MAX_FAILED_STARTS:
                    raise
            else:
                self._failed_starts = 0
                return result

    def _measure_call(self, task: tuple) -> Any:
        clock, start = self._worker.clock, time.monotonic()
        read_before = clock.total()
        try:
            return self._worker.call(task, self._timeout)
        finally:
            self.busy_seconds += time.monotonic() - start
            self.read_seconds += clock.total() - read_before

    def prefetch(self, *task: Any) -> None:
        """Lets the worker read the file of a later task while it runs the next task."""
        self._worker.prefetch(task)

    @property
    def is_reading(self) -> bool:
        """Whether the worker is currently waiting for storage."""
        return bool(self._worker.clock.read_start)

    def pause(self, seconds: float) -> None:
        """Sleeps for `seconds`, or until `close` is called.

        Raises:
          WorkerClosedError: `close` was called.
        """
        if self._closed.wait(seconds):
            raise WorkerClosedError

    def _replace(self) -> None:
        self.peak_memory()
        with self._lock:
            if self._closed.is_set():
                raise WorkerClosedError
            self.restarts += 1
        self._worker.close()
        worker = self._make_worker()
        with self._lock:
            self._worker, closed = worker, self._closed.is_set()
        if closed:
            worker.close()
            raise WorkerClosedError

    def peak_memory(self) -> int:
        """Returns the peak memory in bytes of any of its workers."""
        self._peak_memory = max(self._peak_memory, self._worker.peak_memory())
        return self._peak_memory

    def close(self) -> None:
        """Stops the worker without replacing it."""
        with self._lock:
            self._closed.set()
            worker = self._worker
        worker.close()
