"""Time limits for tasks that read files: for the task without its reads, and for each read.

Files are opened and read inside `reading()`. The clock of a worker is in memory shared with its
supervisor, which can check it while the worker is blocked in a read. The supervisor does not trust
the clock: impossible times are ignored, and the total time of a task is limited, too.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

CLOCK_BYTES = 16
MAX_READ_TIMEOUTS = 100  # maximum time of a task including its reads, in multiples of its timeout
_LOCAL = threading.local()


class TimeLimitError(Exception):
    """A task exceeded its timeout, excluding the time that it waited for storage."""


class ReadStalledError(Exception):
    """A single read of a task did not return within the timeout."""


class WorkerClosedError(Exception):
    """The worker was closed while a call was pending."""


class ReadClock:
    """Time that a worker waits for storage.

    Args:
      memory: Buffer of `CLOCK_BYTES` bytes that holds the clock. None allocates one.
    """

    def __init__(self, memory: memoryview | None = None):
        # Start time of the current read (0 if there is none), and total seconds of earlier reads.
        self._fields = memoryview(bytearray(CLOCK_BYTES) if memory is None else memory).cast("d")

    def start(self) -> None:
        """Records the start of a read."""
        self._fields[0] = time.monotonic()

    def stop(self) -> None:
        """Records the end of a read."""
        self._fields[1] += time.monotonic() - self._fields[0]
        self._fields[0] = 0.0

    @property
    def read_start(self) -> float:
        """Value of `time.monotonic` at the start of the current read, or 0 if there is none."""
        return _valid_time(self._fields[0])

    def total(self) -> float:
        """Returns the total seconds of all reads, including the current one."""
        start, done = map(_valid_time, self._fields)
        return done + (time.monotonic() - start if start else 0.0)


def _valid_time(seconds: float) -> float:
    """Returns a time of the clock, or 0 if it is in the future or not a number."""
    return seconds if 0.0 <= seconds <= time.monotonic() else 0.0


@contextlib.contextmanager
def use_clock(clock: ReadClock) -> Iterator[None]:
    """Measures the reads of the current thread with `clock`."""
    _LOCAL.clock = clock
    try:
        yield
    finally:
        _LOCAL.clock = None


class reading:  # noqa: N801, a context manager; a class is faster than a generator
    """Context manager for a read. Does nothing without a clock or inside another read."""

    def __enter__(self) -> None:
        clock = getattr(_LOCAL, "clock", None)
        self._clock = None if clock is None or clock.read_start else clock
        if self._clock is not None:
            self._clock.start()

    def __exit__(self, *exception: object) -> None:
        if self._clock is not None:
            self._clock.stop()


def wait_for_result(wait: Callable[[float], bool], clock: ReadClock, timeout: float) -> None:
    """Waits until the result of a worker is ready.

    Args:
      wait: Function that waits for at most the given seconds and returns whether the result is
          ready.
      clock: Clock of the worker.
      timeout: Maximum seconds for a task excluding its reads, and for each of its reads.

    Raises:
      TimeLimitError: The task takes longer than `timeout`, or longer than `MAX_READ_TIMEOUTS`
          times `timeout` including its reads.
      ReadStalledError: A read takes longer than `timeout`.
    """
    start, read_before = time.monotonic(), clock.total()
    while True:
        now, read_start = time.monotonic(), clock.read_start
        end = (read_start or start + clock.total() - read_before) + timeout
        end = min(end, start + MAX_READ_TIMEOUTS * timeout)
        if wait(max(0.0, end - now)):
            return
        if end <= now:
            raise ReadStalledError if read_start else TimeLimitError


class ThreadWorker:
    """Runs tasks in a thread. A thread that hangs is abandoned, because it cannot be killed.

    Attributes:
      clock: Clock of its reads.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        self._tasks, self._results = queue.SimpleQueue(), queue.SimpleQueue()
        self.clock = ReadClock()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with use_clock(self.clock):
            while (task := self._tasks.get()) is not None:
                try:
                    result = self._function(*task), None
                except Exception as error:  # re-raised in `call`
                    result = None, error
                self._results.put(result)

    def call(self, task: tuple, timeout: float) -> Any:
        """Returns the function's result, or raises its exception.

        Raises:
          TimeLimitError: The task takes longer than `timeout` seconds, without its reads.
          ReadStalledError: One of its reads takes longer than `timeout` seconds.
        """
        self._tasks.put(task)
        ready = []

        def wait(seconds: float) -> bool:
            with contextlib.suppress(queue.Empty):
                ready.append(self._results.get(timeout=seconds))
            return bool(ready)

        wait_for_result(wait, self.clock, timeout)
        ((result, error),) = ready
        if error is not None:
            raise error
        return result

    def prefetch(self, task: tuple) -> None:
        """Does nothing: the other threads of the pool read ahead."""

    def close(self) -> None:
        """Stops the thread after its current task; a pending call raises `WorkerClosedError`."""
        self._tasks.put(None)
        self._results.put((None, WorkerClosedError()))

    def peak_memory(self) -> int:
        """Returns 0: the memory of a thread cannot be separated from that of its process."""
        return 0
