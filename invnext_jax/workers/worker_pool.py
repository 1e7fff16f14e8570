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

from invnext_jax.workers.process_worker import ProcessWorker, count_cores
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ThreadWorker, WorkerClosedError

IN_PROCESS_THREADS = 4
RECENT_FILES = 64  # number of files that a worker is assumed to keep open
LATE_SECONDS = 10  # time after the timeout before a warning is logged


def count_workers(requested: int, processes: int = 1) -> int:
    """Returns the number of worker processes: `requested`, or one per core if it is -1.

    Args:
      requested: `config.data.workers`.
      processes: Number of processes that share the cores of this one, including it.
    """
    cores = count_cores()
    if requested < 0:
        return max(1, cores // processes)
    if requested * processes > cores:
        each = f" in each of {processes} processes" if processes > 1 else ""
        logging.warning("config.data.workers=%d%s exceeds the %d cores", requested, each, cores)
    return requested


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
      file_of_task: Function of the task's number that returns the file it reads. If given, workers
          prefer tasks whose file they have read recently, so that they open fewer files.
    """

    def __init__(
        self,
        run_task: Callable[[int, SupervisedWorker], Any],
        make_worker: Callable[[], Any],
        *,
        workers: int,
        ahead: int,
        timeout: float,
        file_of_task: Callable[[int], str] | None = None,
    ):
        self._run_task, self._ahead, self._timeout = run_task, ahead, timeout
        self._file_of_task = file_of_task
        # Tasks that no worker has started, with their files, and how often the first was skipped.
        self._waiting: list[tuple[int, str | None]] = []
        self._skipped = 0
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

    def _pop_task(self, files: dict[str, None]) -> int | None:
        """Returns the next task for a worker, or None if there is none yet.

        Args:
          files: The files that the worker has read, the latest one last. It is updated.
        """
        while self._next_task < self._next_result + self._ahead:
            file = self._file_of_task and self._file_of_task(self._next_task)
            self._waiting.append((self._next_task, file))
            self._next_task += 1
        if not self._waiting:
            return None
        place = 0
        if self._file_of_task and self._skipped < len(self._workers):
            known = (place for place, (_, file) in enumerate(self._waiting) if file in files)
            place = next(known, 0)
        self._skipped = self._skipped + 1 if place else 0
        number, file = self._waiting.pop(place)
        if file is not None:
            files.pop(file, None)
            files[file] = None
            if len(files) > RECENT_FILES:
                del files[next(iter(files))]
        return number

    def _run_tasks(self, worker: SupervisedWorker) -> None:
        files = {}
        while True:
            with self._lock:
                while not self._closed and (number := self._pop_task(files)) is None:
                    self._room.wait()
                if self._closed:
                    return
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
    file_of_task: Callable[[int], str] | None = None,
) -> OrderedPool:
    """Starts a pool whose workers run `function`.

    Args:
      run_task: As in `OrderedPool`.
      function: Function that the workers run. It must be defined in an importable module.
      workers: Number of processes; 0 uses threads of this process instead.
      prefetch: Number of prefetched results per process; with threads, the total number.
      timeout: As in `OrderedPool`.
      protocols: As in `ProcessWorker`.
      file_of_task: As in `OrderedPool`.
    """
    start = functools.partial(ProcessWorker, protocols=protocols) if workers else ThreadWorker
    count = workers or IN_PROCESS_THREADS
    return OrderedPool(
        run_task,
        functools.partial(start, function),
        workers=count,
        ahead=count + prefetch * max(1, workers),
        timeout=timeout,
        file_of_task=file_of_task,
    )
