"""Results in order from workers that may hang or die.

A thread of this process stands behind each worker: it hands out one task at a time, waits no
longer than the limit, and puts a new worker in the place of one that hung or died.
"""

import atexit
import functools
import threading
from collections.abc import Callable
from typing import Any

from absl import logging

from invnext_jax.data.workers import (
    ClosedError,
    ProcessWorker,
    ThreadWorker,
    TimeLimitError,
    WorkerDiedError,
    WorkerStartError,
)

MAX_STARTS = 3  # in a row that fail; more end the run
IN_PROCESS_THREADS = 4


class _Seat:
    """A place in the pool: a worker, and another one when that is gone."""

    def __init__(self, pool: "OrderedPool"):
        self._pool = pool
        self._failed_starts = 0
        self.peak_memory = 0
        self.worker = pool.make_worker()

    def call(self, *task: Any) -> Any:
        """Runs a task, twice if its worker dies.

        Raises:
            TimeLimitError: It takes too long.
            WorkerDiedError: Its worker died twice.
        """
        deaths = 0
        while True:
            try:
                result = self.worker.call(task, self._pool.seconds)
            except TimeLimitError:
                self._replace()
                raise
            except WorkerDiedError:
                self._replace()
                deaths += 1
                if deaths == 2:
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
        self.look()
        with self._pool.lock:
            if self._pool.closed:
                raise ClosedError
            self._pool.restarts += 1
        self.worker.end()
        worker = self._pool.make_worker()
        with self._pool.lock:
            self.worker = worker
            closed = self._pool.closed
        if closed:
            worker.end()
            raise ClosedError

    def look(self) -> None:
        """Notes how much memory the worker took."""
        self.peak_memory = max(self.peak_memory, self.worker.memory())


class OrderedPool:
    """Gives the results of tasks 0, 1, 2, ... in order, some of them made ahead.

    Args:
        work: Called in a thread of this process with a task's number and with `call`, which runs
            the function in a worker and may raise `TimeLimitError` or `WorkerDiedError`.
        make_worker: Makes a worker.
        workers: How many.
        ahead: How many results may be under way or wait.
        seconds: Longest time of one call.

    Attributes:
        restarts: Workers that were replaced.
    """

    def __init__(
        self,
        work: Callable[[int, Callable[..., Any]], Any],
        make_worker: Callable[[], Any],
        *,
        workers: int,
        ahead: int,
        seconds: float,
    ):
        self.make_worker, self.seconds = make_worker, seconds
        self.lock = threading.Lock()
        self._room, self._ready = threading.Condition(self.lock), threading.Condition(self.lock)
        self.closed, self.restarts = False, 0
        self._work, self._ahead = work, ahead
        self._next, self._taken = 0, 0
        self._done: dict[int, Any] = {}
        self._seats = [_Seat(self) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(seat,), daemon=True) for seat in self._seats
        ]
        for thread in self._threads:
            thread.start()
        # Workers ignore the signals that end a process; nobody else would end them.
        atexit.register(self.close)

    def _run(self, seat: _Seat) -> None:
        while True:
            with self.lock:
                while not self.closed and self._next >= self._taken + self._ahead:
                    self._room.wait()
                if self.closed:
                    return
                number, self._next = self._next, self._next + 1
            try:
                result = self._work(number, seat.call)
            except ClosedError:
                return
            except Exception as error:  # raised again in `take`
                result = error
            with self.lock:
                self._done[number] = result
                if number == self._taken:
                    self._ready.notify()

    def take(self) -> Any:
        """The next result, or what its work raised."""
        with self.lock:
            while self._taken not in self._done:
                if self.closed:
                    raise RuntimeError("the pool is closed")
                if not self._ready.wait(self.seconds + 10):
                    logging.warning("no clip in %g s: the data workers hang", self.seconds)
            result = self._done.pop(self._taken)
            self._taken += 1
            self._room.notify()
        if isinstance(result, Exception):
            raise result
        return result

    def peak_memory(self) -> int:
        """The most bytes that any worker held."""
        for seat in self._seats:
            seat.look()
        return max(seat.peak_memory for seat in self._seats)

    def close(self) -> None:
        """Ends the workers and waits for them; may be called twice."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            workers = [seat.worker for seat in self._seats]
            self._room.notify_all()
            self._ready.notify_all()
        atexit.unregister(self.close)
        for worker in workers:
            worker.end()
        for thread in self._threads:
            thread.join(5)


def open_pool(
    work: Callable[[int, Callable[..., Any]], Any],
    function: Callable[..., Any],
    *,
    workers: int,
    prefetch: int,
    seconds: float,
) -> OrderedPool:
    """Starts a pool whose workers run `function`; see `OrderedPool`.

    Args:
        work: As of the pool.
        function: What the workers run; processes must be able to import it.
        workers: Processes; 0 takes some threads of this process instead.
        prefetch: Results held ready for each process, or in all for the threads.
        seconds: As of the pool.
    """
    seats = workers or IN_PROCESS_THREADS
    return OrderedPool(
        work,
        functools.partial(ProcessWorker if workers else ThreadWorker, function),
        workers=seats,
        ahead=seats + prefetch * max(1, workers),
        seconds=seconds,
    )
