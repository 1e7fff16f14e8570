"""Main loop of a worker process: runs one function on each task; see `workers.ProcessWorker`.

The process is a new interpreter. It imports only the modules that the function needs, which
excludes JAX and the main script. Large arrays in a result are passed through shared memory;
everything else is pickled.
"""

import io
import mmap
import os
import resource
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from invnext_jax.workers.read_clock import CLOCK_BYTES, ReadClock, use_clock

SIGTERM_GRACE_SECONDS = 60
ORPHAN_SECONDS = 5  # an orphaned process exits this long after its task's timeout
SHARED_BYTES = 2**28  # reserved address space; only written pages use memory
MIN_SHARED_BYTES = 4096  # arrays below this size are pickled
MAX_BYTES = 2**32  # memory limit of the worker; protects the machine from huge clips


def main(socket: str, shared: str) -> None:
    """Runs tasks until the other end of the socket is closed.

    Args:
        socket: File descriptor from which tasks are received.
        shared: File descriptor of the shared memory.
    """
    connection, memory = Connection(int(socket)), mmap.mmap(int(shared), SHARED_BYTES)
    clock = _AlarmClock(mmap.mmap(int(shared), CLOCK_BYTES, offset=SHARED_BYTES))
    _set_up_process()
    try:
        try:
            function = connection.recv()
        except Exception:  # re-raised by the parent
            connection.send(traceback.format_exc())
            return
        connection.send(None)
        prefetch_thread = None
        while True:
            task, timeout = connection.recv()
            if timeout is None:
                prefetch_thread = _prefetch(function, task, prefetch_thread)
                continue
            clock.set_alarm(timeout + ORPHAN_SECONDS)
            with use_clock(clock):
                result = _run_task(function, task, memory)
            clock.set_alarm(0)
            connection.send(result)
    except (EOFError, OSError):
        return


def _prefetch(function, task: tuple, last: threading.Thread | None) -> threading.Thread | None:
    """Reads the file of a later task into the page cache, unless a prefetch is still running."""
    prefetch = getattr(function, "prefetch", None)
    if prefetch is None or (last is not None and last.is_alive()):
        return last
    thread = threading.Thread(target=prefetch, args=task, daemon=True)
    thread.start()
    return thread


class _AlarmClock(ReadClock):
    """A clock that ends the process if neither reading nor decoding makes progress.

    A decoder may hang while it holds the GIL. Then only a signal can end an orphaned process.
    """

    def set_alarm(self, seconds: float) -> None:
        """Ends the process `seconds` after the last start or end of a read; 0 cancels the alarm."""
        self._seconds = seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def start(self) -> None:
        super().start()
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        super().stop()
        signal.setitimer(signal.ITIMER_REAL, self._seconds)


def _run_task(function, task: tuple, memory: mmap.mmap) -> tuple[bytes, list[int], str | None]:
    try:
        return *dump_result(function(*task), memory), None
    except MemoryError:
        os._exit(1)
    except Exception:  # re-raised by the parent
        return b"", [], traceback.format_exc()


def dump_result(value: Any, memory: mmap.mmap) -> tuple[bytes, list[int]]:
    """Pickles `value`, but copies its large arrays consecutively into `memory`.

    Returns:
        The pickle, and the length in bytes of each array in `memory`.
    """
    lengths = []

    def pickle_in_band(buffer) -> bool:
        """Returns whether a buffer is pickled with the rest of the value."""
        data = buffer.raw()
        start = sum(lengths)
        if data.nbytes < MIN_SHARED_BYTES or start + data.nbytes > len(memory):
            return True
        memory[start : start + data.nbytes] = data
        lengths.append(data.nbytes)
        return False

    file = io.BytesIO()
    _Pickler(file, pickle_in_band).dump(value)
    return file.getvalue(), lengths


class _Pickler(ForkingPickler):
    """A `ForkingPickler` that also accepts `buffer_callback`."""

    def __init__(self, file, buffer_callback):
        super(ForkingPickler, self).__init__(file, 5, buffer_callback=buffer_callback)


def _set_up_process() -> None:
    """Makes the process ignore shutdown signals, exit with its parent, and limit its memory."""
    # A signal to the process group must not stop the workers before the parent has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_after_grace)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    if hard_limit == resource.RLIM_INFINITY or hard_limit > MAX_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, hard_limit))


def _exit_after_grace(signal_number, frame) -> None:
    del signal_number, frame
    timer = threading.Timer(SIGTERM_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent exits, because the parent never writes
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
