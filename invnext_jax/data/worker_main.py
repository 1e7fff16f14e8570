"""What a worker process does: one function, task after task; started by `workers.ProcessWorker`.

It starts from nothing and imports what the function needs, so neither JAX nor the main script.
Large arrays of a result lie in memory that both sides share, the rest is pickled.
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

SIGNAL_GRACE_SECONDS = 60
ORPHAN_SECONDS = 5  # after the limit, a process whose parent is gone ends
SHARED_BYTES = 2**28  # address space; only what is written takes memory
SHARED_FROM = 4096  # bytes of an array; smaller ones are pickled
MAX_BYTES = 2**32  # of memory; a clip that asks for more ends the worker, not the machine


def main(socket: str, shared: str) -> None:
    """Serves tasks until the other end is gone.

    Args:
        socket: Number of the open file through which tasks come.
        shared: Number of the open file that is the shared memory.
    """
    connection, memory = Connection(int(socket)), mmap.mmap(int(shared), SHARED_BYTES)
    _settle()
    try:
        try:
            function = connection.recv()
        except Exception:  # told by the parent
            connection.send(traceback.format_exc())
            return
        connection.send(None)
        while True:
            task, seconds = connection.recv()
            # A decoder may hang with the interpreter's lock; then the kernel must end an orphan.
            signal.setitimer(signal.ITIMER_REAL, seconds + ORPHAN_SECONDS)
            answer = _answer(function, task, memory)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
    except (EOFError, OSError):
        return


def _answer(function, task: tuple, memory: mmap.mmap) -> tuple[bytes, list[int], str | None]:
    try:
        return *dump(function(*task), memory), None
    except MemoryError:
        os._exit(1)
    except Exception:  # raised again in the parent
        return b"", [], traceback.format_exc()


def dump(value: Any, memory: mmap.mmap) -> tuple[bytes, list[int]]:
    """Pickles `value`, but copies its large arrays into `memory`, one after the other.

    Returns:
        The pickle, and the length of each of these arrays in bytes.
    """
    lengths = []

    def keep(buffer) -> bool:
        """Whether an array is pickled with the rest."""
        bytes_ = buffer.raw()
        start = sum(lengths)
        if bytes_.nbytes < SHARED_FROM or start + bytes_.nbytes > len(memory):
            return True
        memory[start : start + bytes_.nbytes] = bytes_
        lengths.append(bytes_.nbytes)
        return False

    file = io.BytesIO()
    _Pickler(file, keep).dump(value)
    return file.getvalue(), lengths


class _Pickler(ForkingPickler):
    """Gives large buffers to `keep`, which multiprocessing's own has no argument for."""

    def __init__(self, file, keep):
        super(ForkingPickler, self).__init__(file, 5, buffer_callback=keep)


def _settle() -> None:
    """Keeps the process alive through a shutdown, but no longer than its parent, and bounded."""
    # A signal to the whole group must not take the data away before the parent has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or most > MAX_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, most))


def _leave_later(signal_number, frame) -> None:
    del signal_number, frame
    timer = threading.Timer(SIGNAL_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _leave_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # the parent holds the other end and writes nothing
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
