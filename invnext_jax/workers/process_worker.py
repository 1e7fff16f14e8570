"""Worker processes that run one task at a time and can be killed if they hang.

A worker process is a new Python interpreter that does not inherit modules or memory from this one.
"""

import contextlib
import fcntl
import math
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection
from typing import Any

from invnext_jax.workers import messages, worker_main
from invnext_jax.workers.cpu_quota import allowed_cores, read_cpu_quota
from invnext_jax.workers.results import InvalidResultError
from invnext_jax.workers.time_limits import CLOCK_BYTES, ReadClock, wait_for_result
from invnext_jax.workers.worker_environment import make_environment

RETURN_SECONDS = 5  # maximum time until a pending call notices that its process has exited
START_SECONDS = 300  # long enough for imports on a busy machine with a slow disk
SEND_SECONDS = 60  # maximum time until the process receives a task


def count_cores() -> int:
    """Returns the number of cores that this process may use, given its affinity and CPU quota."""
    allowed, quota = len(allowed_cores()), read_cpu_quota()
    return allowed if quota >= allowed else max(1, math.ceil(quota))


class WorkerDiedError(Exception):
    """A worker died while it ran a task."""


class WorkerStartError(RuntimeError):
    """A worker cannot be started."""


class ProcessWorker:
    """Runs tasks in a process that can be killed at any time.

    The process decodes untrusted videos, so its answers are not trusted (see `workers.messages`).
    An invalid answer is handled as if the process had died. If the function has a method
    `is_valid(result, *task)`, a result for which it returns False is invalid.

    Args:
      function: Function that is called with the values of a task. It is pickled, so it must be
          defined in an importable module, not in the main script. Its results must be of the
          types that `workers.results` describes.
      protocols: Protocols of the remote files that the function reads. The process receives only
          the credentials for these protocols.

    Attributes:
      pid: Process ID.
      clock: Clock of its reads.
    """

    def __init__(self, function: Callable[..., Any], protocols: Collection[str] = ()):
        if getattr(function, "__module__", None) == "__main__":
            raise WorkerStartError(
                f"{function!r} is defined in the main script, which workers do not import: "
                "move it into a module"
            )
        self._connection, worker_end = socket.socketpair()
        file = _open_shared_memory()
        try:
            self._memory = mmap.mmap(file, worker_main.SHARED_BYTES)
            self._clock_memory = mmap.mmap(file, CLOCK_BYTES, offset=worker_main.SHARED_BYTES)
            self.clock = ReadClock(self._clock_memory)
            self._process = subprocess.Popen(
                # -P: do not import from the current folder.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    worker_main.__name__,
                    str(worker_end.fileno()),
                    str(file),
                ],
                env=make_environment(protocols),
                stdin=subprocess.PIPE,  # the process exits when this end is closed
                pass_fds=(worker_end.fileno(), file),
                bufsize=0,
            )
        finally:
            worker_end.close()  # otherwise the exit of the process would go unnoticed
            os.close(file)
        self.pid = self._process.pid
        self._reader = messages.AnswerReader(self._connection)
        self._function, self._is_valid = function, getattr(function, "is_valid", None)
        self._ready, self._broken, self._prefetched = False, False, None
        self._call_lock = threading.Lock()

    def call(self, task: tuple, timeout: float) -> Any:
        """Returns the function's result. The next call overwrites the large arrays in it.

        Raises:
          TimeLimitError: The task takes longer than `timeout` seconds, without its reads.
          ReadStalledError: One of its reads takes longer than `timeout` seconds.
          WorkerDiedError: The process died, or its answer is invalid.
          WorkerStartError: The process did not start.
          RuntimeError: The function raised an exception.
        """
        with self._call_lock:
            return self._call(task, timeout)

    def prefetch(self, task: tuple) -> None:
        """Starts `function.prefetch(*task)` in a thread of the process, before the next call.

        Its result is discarded.
        """
        self._prefetched = (task, None)  # sent with the next task, to save a system call

    def _call(self, task: tuple, timeout: float) -> Any:
        try:
            if not self._ready:
                self._wait_for_start()
            self._send(*filter(None, (self._prefetched, (task, timeout))))
            self._prefetched = None
            wait_for_result(self._reader.wait, self.clock, timeout)
            result, error = self._reader.decode(self._memory)
            if error is None and self._is_valid and not self._is_valid(result, *task):
                raise InvalidResultError("a result that does not match its task")
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._exit_status()) from error
        except InvalidResultError as error:
            raise WorkerDiedError(f"it sent {error}") from error
        if error is not None:
            raise RuntimeError(f"in a data worker:\n{error}")
        return result

    def _send(self, *values: Any) -> None:
        if self._broken:
            raise EOFError
        self._connection.settimeout(SEND_SECONDS)
        try:
            self._connection.sendall(b"".join(map(messages.dump_task, values)))
        except OSError:
            self._broken = True  # part of the values may have been sent
            raise

    def _wait_for_start(self) -> None:
        """Waits until the imports are done, to exclude them from the first task's timeout."""
        try:
            self._send(self._function)
            if not self._reader.wait(START_SECONDS):
                raise WorkerStartError(f"a data worker did not start in {START_SECONDS} s")
            _, error = self._reader.decode(self._memory)
        except (EOFError, OSError, InvalidResultError) as error:
            raise WorkerStartError(
                f"a data worker died during startup ({self._exit_status()}): define its function "
                "in a module that can be imported"
            ) from error
        if error is not None:
            raise WorkerStartError(f"a data worker cannot load its function:\n{error}")
        self._ready = True

    def _exit_status(self) -> str:
        try:
            return f"exit code {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            return "it does not respond"

    def close(self) -> None:
        """Kills the process; a pending call raises `WorkerDiedError`."""
        self._process.kill()
        self._process.stdin.close()
        self._exit_status()
        with contextlib.suppress(OSError):  # ends a pending call even if a child keeps the socket
            self._connection.shutdown(socket.SHUT_RDWR)
        # A pending call must return before its files are closed, because descriptors are reused.
        if self._call_lock.acquire(timeout=RETURN_SECONDS):
            self._connection.close()
            with contextlib.suppress(BufferError):  # a traceback may still refer to its arrays
                self._memory.close()
            self._call_lock.release()

    def peak_memory(self) -> int:
        """Returns the peak resident memory in bytes; 0 if the system does not report it."""
        try:
            with open(f"/proc/{self.pid}/status") as file:
                lines = [line for line in file if line.startswith("VmHWM:")]
        except OSError:
            return 0
        return int(lines[0].split()[1]) * 1024 if lines else 0


def _open_shared_memory() -> int:
    """Opens an in-memory file, or a temporary file if the system has no memfd."""
    size = worker_main.SHARED_BYTES + CLOCK_BYTES
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("data worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, size)
        # Seals prevent the worker from shrinking the file, which would crash the parent when it
        # reads the memory.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        return file
    with tempfile.TemporaryFile() as temporary:
        file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file
