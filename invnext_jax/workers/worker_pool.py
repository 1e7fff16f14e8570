"""A worker pool that returns results in order and tolerates workers that hang or die.

Each worker has a thread in this process. The thread sends it one task at a time, waits for at most
the timeout, and replaces the worker if it hangs, dies or waits for storage that does not answer.
"""

import atexit
import functools
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from absl import logging

from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError, WorkerStartError
from invnext_jax.workers.time_limits import (
    ReadStalledError,
    ThreadWorker,
    TimeLimitError,
    WorkerClosedError,
)

IN_PROCESS_THREADS = 4
MAX_FAILED_STARTS = 3  # consecutive failed starts after which the run ends
LATE_SECONDS = 10  # time after the timeout before a warning is logged


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


class OrderedPool:
    """Runs tasks 0, 1, 2, ... in workers, prefetches some, and returns the results in order.

    Args:
      run_task: Function of the task's number and a `SupervisedWorker`, called in a thread of this
          process. Calling the worker runs the pool's function and may raise `TimeLimitError`,
          `ReadStalledError` or `WorkerDiedError`.
      make_worker: Function that returns a new worker.
      workers: Number of workers.
      ahead: Maximum number of results that are being computed or have not been read yet.
      timeout: Time limit per call in seconds.
    """

    def __init__(
        self,
        run_task: Callable[[int, SupervisedWorker], Any],
        make_worker: Callable[[], Any],
        *,
        workers: int,
        ahead: int,
        timeout: float,
    ):
        self._run_task, self._ahead, self._timeout = run_task, ahead, timeout
        self._lock, self._closed = threading.Lock(), False
        self._room, self._ready = threading.Condition(self._lock), threading.Condition(self._lock)
        self._next_task, self._next_result = 0, 0
        self._results: dict[int, Any] = {}
        self._done, self._busy_seconds = 0, 0.0
        self._workers = [SupervisedWorker(make_worker, timeout) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run_tasks, args=(worker,), daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()
        # Workers ignore the signals that stop this process, so they must be closed when it exits.
        atexit.register(self.close)

    def _run_tasks(self, worker: SupervisedWorker) -> None:
        while True:
            with self._lock:
                while not self._closed and self._next_task >= self._next_result + self._ahead:
                    self._room.wait()
                if self._closed:
                    return
                number, self._next_task = self._next_task, self._next_task + 1
            start = time.perf_counter()
            try:
                result = self._run_task(number, worker)
            except WorkerClosedError:
                return
            except Exception as error:  # re-raised in `next_result`
                result = error
            with self._lock:
                self._done, self._busy_seconds = (
                    self._done + 1,
                    self._busy_seconds + time.perf_counter() - start,
                )
                self._results[number] = result
                if number == self._next_result:
                    self._ready.notify()
            del result  # a waiting thread must not keep the memory of a batch in use

    def next_result(self) -> Any:
        """Returns the next result, or raises the exception of its task."""
        start, limit = time.monotonic(), self._timeout + LATE_SECONDS
        with self._lock:
            while self._next_result not in self._results:
                if self._closed:
                    raise RuntimeError("the pool is closed")
                if not self._ready.wait(limit):
                    reading = sum(worker.is_reading for worker in self._workers)
                    logging.warning(
                        "no clip in %.0f s: %d of %d data workers wait for storage",
                        *(time.monotonic() - start, reading, len(self._workers)),
                    )
                    limit *= 2
            result = self._results.pop(self._next_result)
            self._next_result += 1
            self._room.notify()
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def work_done(self) -> tuple[int, float]:
        """Number of completed tasks, and the seconds they took divided by the number of workers.

        The ratio of the two is the throughput of a pool whose workers never wait for a task.
        """
        with self._lock:
            return self._done, self._busy_seconds / len(self._workers)

    @property
    def restarts(self) -> int:
        """Number of replaced workers."""
        return sum(worker.restarts for worker in self._workers)

    def busy_seconds(self) -> tuple[float, float]:
        """Returns the seconds all workers spent on tasks, and those spent waiting for storage."""
        busy = sum(worker.busy_seconds for worker in self._workers)
        return busy, sum(worker.read_seconds for worker in self._workers)

    def peak_memory(self) -> int:
        """Returns the peak memory in bytes of any worker."""
        return max(worker.peak_memory() for worker in self._workers)

    def close(self) -> None:
        """Stops the workers and waits for their threads; further calls do nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._room.notify_all()
            self._ready.notify_all()
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.close()
        for thread in self._threads:
            thread.join(5)


def open_pool(
    run_task: Callable[[int, SupervisedWorker], Any],
    function: Callable[..., Any],
    *,
    workers: int,
    prefetch: int,
    timeout: float,
    protocols: Collection[str] = (),
) -> OrderedPool:
    """Starts a pool whose workers run `function`.

    Args:
      run_task: As in `OrderedPool`.
      function: Function that the workers run. It must be defined in an importable module.
      workers: Number of processes; 0 uses threads of this process instead.
      prefetch: Number of prefetched results per process; with threads, the total number.
      timeout: As in `OrderedPool`.
      protocols: As in `ProcessWorker`.
    """
    start = functools.partial(ProcessWorker, protocols=protocols) if workers else ThreadWorker
    count = workers or IN_PROCESS_THREADS
    return OrderedPool(
        run_task,
        functools.partial(start, function),
        workers=count,
        ahead=count + prefetch * max(1, workers),
        timeout=timeout,
    )
