"""Workers that run one task at a time and may hang or die: processes, or threads of this process.

Large arrays of a result come back through the pipe as they are; only what is small is pickled.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SIGNAL_GRACE_SECONDS = 60
START_SECONDS = 300  # imports on a busy machine with a slow disk
RAW_BYTES = 4096  # larger arrays go through the pipe as they are, smaller ones pickled
_SPAWNING = threading.Lock()  # multiprocessing reaps its children without a lock of its own


class TimeLimitError(Exception):
    """A task took longer than it may; its worker was ended."""


class WorkerDiedError(Exception):
    """A worker died twice over the same task."""


class WorkerStartError(RuntimeError):
    """Workers do not start."""


class ClosedError(Exception):
    """The pool is closed while a task is under way."""


class _Raw(NamedTuple):
    """Stands in a message for an array whose bytes follow."""

    shape: tuple[int, ...]
    dtype: str


class ThreadWorker:
    """Runs tasks in a thread; one that hangs is left behind, for a thread cannot be ended."""

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        self._tasks, self._results = queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                result = self._function(*task), None
            except Exception as error:  # raised again in `call`
                result = None, error
            self._results.put(result)

    def call(self, task: tuple, seconds: float) -> Any:
        """The function's result, or its exception.

        Raises:
            TimeLimitError: It takes longer than `seconds`.
        """
        self._tasks.put(task)
        try:
            result, error = self._results.get(timeout=seconds)
        except queue.Empty:
            raise TimeLimitError from None
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """Ends the thread once it has nothing to do."""
        self._tasks.put(None)
        self._results.put((None, ClosedError()))

    def memory(self) -> int:
        """Bytes of its own: none that could be told from this process's."""
        return 0


class ProcessWorker:
    """Runs tasks in a process that can be ended at any time."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self._ready = False
        with _SPAWNING:
            self._process.start()
        theirs.close()  # or its end would never be seen

    def call(self, task: tuple, seconds: float) -> Any:
        """The function's result.

        Raises:
            TimeLimitError: It takes longer than `seconds`.
            WorkerDiedError: The process is gone.
            WorkerStartError: It never came up.
            RuntimeError: The function raised something.
        """
        try:
            if not self._ready:
                self._wait_for_start()
            self._connection.send(task)
            if not self._connection.poll(seconds):
                raise TimeLimitError
            result, error = _receive(self._connection)
        except (EOFError, OSError) as error:
            raise WorkerDiedError(str(error)) from error
        if error is not None:
            raise RuntimeError(f"in a data worker:\n{error}")
        return result

    def _wait_for_start(self) -> None:
        """The start, which imports much, does not count as time of the first task."""
        try:
            if not self._connection.poll(START_SECONDS):
                raise WorkerStartError(f"a data worker did not start in {START_SECONDS} s")
            self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerStartError(
                "a data worker died at its start: the main module must be importable, with "
                "what it runs under `if __name__ == '__main__'`"
            ) from error
        self._ready = True

    def end(self) -> None:
        """Kills the process; one that the kernel does not let die is left to it."""
        with _SPAWNING:
            self._process.kill()
            self._process.join(1)

    def memory(self) -> int:
        """The most bytes that it ever held; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self._process.pid}/status") as file:
                lines = [line for line in file if line.startswith("VmHWM:")]
        except OSError:
            return 0
        return int(lines[0].split()[1]) * 1024 if lines else 0


def _serve(connection, function: Callable[[Any], Any]) -> None:
    """What a worker process does."""
    _init_worker()
    connection.send("ready")
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            result = function(*task)
        except Exception:  # raised again in the parent
            connection.send((None, traceback.format_exc()))
        else:
            _send(connection, result)


def _send(connection, result: Any) -> None:
    """Sends large arrays of a dict as they are: nothing is pickled or copied on the way."""
    raw = {}
    if isinstance(result, dict):
        raw = {
            name: np.ascontiguousarray(value)
            for name, value in result.items()
            if isinstance(value, np.ndarray) and value.nbytes > RAW_BYTES
        }
        result = {**result, **{name: _Raw(a.shape, a.dtype.str) for name, a in raw.items()}}
    connection.send((result, None))
    for array in raw.values():
        connection.send_bytes(array.data.cast("B"))


def _receive(connection) -> tuple[Any, str | None]:
    result, error = connection.recv()
    for name, value in result.items() if isinstance(result, dict) else ():
        if isinstance(value, _Raw):
            array = np.empty(value.shape, value.dtype)
            connection.recv_bytes_into(array.data.cast("B"))
            result[name] = array
    return result, error


def _init_worker() -> None:
    """Keeps a worker off the accelerator, alive through a shutdown, and never longer than that."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # A signal to the whole group must not take the data away before the parent has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_later(signal_number, frame) -> None:
    del signal_number, frame
    timer = threading.Timer(SIGNAL_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
