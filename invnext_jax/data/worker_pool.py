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

from invnext_jax.data.supervisor import SupervisedWorker
from invnext_jax.data.workers import ClosedError, ProcessWorker, ThreadWorker

IN_PROCESS_THREADS = 4


class OrderedPool:
    """Gives the results of tasks 0, 1, 2, ... in order, some of them made ahead.

    Args:
        work: Called in a thread of this process with a task's number and with `call`, which runs
            the function in a worker and may raise `TimeLimitError` or `WorkerDiedError`.
        make_worker: Makes a worker.
        workers: How many.
        ahead: How many results may be under way or wait.
        seconds: Longest time of one call.
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
        self._work, self._ahead, self._seconds = work, ahead, seconds
        self._lock, self._closed = threading.Lock(), False
        self._room, self._ready = threading.Condition(self._lock), threading.Condition(self._lock)
        self._next, self._taken = 0, 0
        self._done: dict[int, Any] = {}
        self._seats = [SupervisedWorker(make_worker, seconds) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(seat,), daemon=True) for seat in self._seats
        ]
        for thread in self._threads:
            thread.start()
        # Workers ignore the signals that end a process; nobody else would end them.
        atexit.register(self.close)

    def _run(self, seat: SupervisedWorker) -> None:
        while True:
            with self._lock:
                while not self._closed and self._next >= self._taken + self._ahead:
                    self._room.wait()
                if self._closed:
                    return
                number, self._next = self._next, self._next + 1
            try:
                result = self._work(number, seat.call)
            except ClosedError:
                return
            except Exception as error:  # raised again in `take`
                result = error
            with self._lock:
                self._done[number] = result
                if number == self._taken:
                    self._ready.notify()

    def take(self) -> Any:
        """The next result, or what its work raised."""
        with self._lock:
            while self._taken not in self._done:
                if self._closed:
                    raise RuntimeError("the pool is closed")
                if not self._ready.wait(self._seconds + 10):
                    logging.warning("no clip in %g s: the data workers hang", self._seconds)
            result = self._done.pop(self._taken)
            self._taken += 1
            self._room.notify()
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def restarts(self) -> int:
        """Workers that were replaced."""
        return sum(seat.restarts for seat in self._seats)

    def peak_memory(self) -> int:
        """The most bytes that any worker held."""
        return max(seat.peak_memory() for seat in self._seats)

    def close(self) -> None:
        """Ends the workers and waits for them; may be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._room.notify_all()
            self._ready.notify_all()
        atexit.unregister(self.close)
        for seat in self._seats:
            seat.close()
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
