"""Main loop of a worker process: runs one function on each task; see `process_worker`.

The process is a new interpreter. It imports only the modules that the function needs, which
excludes JAX and the main script. Results are sent as described in `workers.messages`.
"""

import mmap
import os
import resource
import signal
import socket
import sys
import threading
import traceback

from invnext_jax import command_output
from invnext_jax.workers import messages
from invnext_jax.workers.time_limits import CLOCK_BYTES, ReadClock, use_clock

SIGTERM_GRACE_SECONDS = 60
ORPHAN_SECONDS = 5  # an orphaned process exits this long after its task's timeout
SHARED_BYTES = 2**28  # reserved address space; only written pages use memory
MAX_BYTES = 2**32  # memory limit of the worker; protects the machine from huge clips


def main(connection_file: str, shared: str) -> None:
    """Runs tasks until the other end of the socket is closed.

    Args:
      connection_file: File descriptor of the socket from which tasks are received.
      shared: File descriptor of the shared memory.
    """
    connection = socket.socket(fileno=int(connection_file))
    memory = mmap.mmap(int(shared), SHARED_BYTES)
    clock = _AlarmClock(mmap.mmap(int(shared), CLOCK_BYTES, offset=SHARED_BYTES))
    _set_up_process()
    command_output.sanitize_output()  # standard error is that of the parent
    try:
        try:
            function = messages.receive_task(connection)
        except Exception:  # re-raised by the parent
            messages.encode_error(traceback.format_exc()).send(connection)
            return
        messages.encode_result(None, memory).send(connection)
        prefetch_thread = None
        while True:
            task, timeout = messages.receive_task(connection)
            if timeout is None:
                prefetch_thread = _prefetch(function, task, prefetch_thread)
                continue
            clock.set_alarm(timeout + ORPHAN_SECONDS)
            with use_clock(clock):
                result = _run_task(function, task, memory)
            clock.set_alarm(0)
            result.send(connection)
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


def _run_task(function, task: tuple, memory: mmap.mmap) -> messages.Answer:
    try:
        return messages.encode_result(function(*task), memory)
    except MemoryError:
        os._exit(1)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # re-raised by the parent; panics of Rust extensions are no `Exception`
        return messages.encode_error(traceback.format_exc())


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
