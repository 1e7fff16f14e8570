"""Workers that run one task at a time and may hang or die: processes, or threads of this process.

A worker process is started from nothing: it holds neither this process's modules nor its memory.
"""

import contextlib
import mmap
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from invnext_jax.data import worker_main

END_SECONDS = 5  # for a call to see that its process is gone
START_SECONDS = 300  # imports on a busy machine with a slow disk
# No accelerator is ever seen, whatever the function imports; a worker has one core.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# glibc would give the memory of each clip's frames back to the system and ask for it anew.
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**27)}


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class TimeLimitError(Exception):
    """A task took longer than it may; its worker was ended."""


class WorkerDiedError(Exception):
    """A worker died over a task."""


class WorkerStartError(RuntimeError):
    """Workers do not start."""


class ClosedError(Exception):
    """No worker is left, for all is closed."""


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
    """Runs tasks in a process that can be ended at any time.

    Args:
        function: Called with a task's values. It is pickled: it must stand in a module that can be
            imported, not in the main script.

    Attributes:
        pid: The process.
    """

    def __init__(self, function: Callable[[Any], Any]):
        if getattr(function, "__module__", None) == "__main__":
            raise WorkerStartError(
                f"{function!r} stands in the main script, which worker processes do not import: "
                "move it into a module"
            )
        ours, theirs = socket.socketpair()
        file = _open_shared()
        try:
            self._memory = mmap.mmap(file, worker_main.SHARED_BYTES)
            self._process = subprocess.Popen(
                # -P: the folder it is started in is no place to import from.
                [sys.executable, "-P", "-m", worker_main.__name__, str(theirs.fileno()), str(file)],
                env=_environment(),
                stdin=subprocess.PIPE,  # it ends when this end is closed
                pass_fds=(theirs.fileno(), file),
                bufsize=0,
            )
        finally:
            theirs.close()  # or its end would never be seen
            os.close(file)
        self.pid = self._process.pid
        self._connection = Connection(ours.detach())
        self._function, self._ready = function, False
        self._calling = threading.Lock()

    def call(self, task: tuple, seconds: float) -> Any:
        """The function's result, whose large arrays the next call overwrites.

        Raises:
            TimeLimitError: It takes longer than `seconds`.
            WorkerDiedError: The process is gone.
            WorkerStartError: It never came up.
            RuntimeError: The function raised something.
        """
        with self._calling:
            return self._call(task, seconds)

    def _call(self, task: tuple, seconds: float) -> Any:
        try:
            if not self._ready:
                self._wait_for_start()
            self._connection.send((task, seconds))
            if not self._connection.poll(seconds):
                raise TimeLimitError
            data, lengths, error = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._last_words()) from error
        if error is not None:
            raise RuntimeError(f"in a data worker:\n{error}")
        return _load(data, lengths, self._memory)

    def _wait_for_start(self) -> None:
        """The start, which imports much, does not count as time of the first task."""
        try:
            self._connection.send(self._function)
            if not self._connection.poll(START_SECONDS):
                raise WorkerStartError(f"a data worker did not start in {START_SECONDS} s")
            error = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerStartError(
                f"a data worker died at its start ({self._last_words()}): what it runs must stand "
                "in a module that can be imported"
            ) from error
        if error is not None:
            raise WorkerStartError(f"a data worker cannot load what it shall run:\n{error}")
        self._ready = True

    def _last_words(self) -> str:
        try:
            return f"exit code {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            return "it does not answer"

    def end(self) -> None:
        """Kills the process; one that the kernel does not let die is left to it.

        A thread inside `call` is let out first, for the numbers of closed files are given anew.
        """
        self._process.kill()
        self._process.stdin.close()
        self._last_words()
        if self._calling.acquire(timeout=END_SECONDS):
            self._connection.close()
            with contextlib.suppress(BufferError):  # a traceback may hold arrays over it
                self._memory.close()
            self._calling.release()

    def memory(self) -> int:
        """The most bytes that it ever held; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.pid}/status") as file:
                lines = [line for line in file if line.startswith("VmHWM:")]
        except OSError:
            return 0
        return int(lines[0].split()[1]) * 1024 if lines else 0


def _environment() -> dict[str, str]:
    """This process's, but for what would start threads or an accelerator."""
    places = os.pathsep.join(place or os.getcwd() for place in sys.path)
    return {**ALLOCATION, **os.environ, **ENVIRONMENT, "PYTHONPATH": places}


def _open_shared() -> int:
    """A file in memory, or on disk where the system has no such thing."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("data worker")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, worker_main.SHARED_BYTES)
    return file


def _load(data: bytes, lengths: list[int], memory: mmap.mmap) -> Any:
    """Undoes `worker_main.dump`; the arrays lie in `memory`."""
    arrays, start = [], 0
    for length in lengths:
        arrays.append(np.frombuffer(memory, np.uint8, length, start))
        start += length
    return ForkingPickler.loads(data, buffers=arrays)
