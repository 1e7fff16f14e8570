"""Reports stalls, with stack traces of all threads, the host, and each process's last step."""

import faulthandler
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, TextIO

import jax
from jax._src import distributed  # the key-value store has no public API; Orbax uses it too

COMPILE_FACTOR = 6  # time limit for a compilation, relative to that of a step
_KEY_PREFIX = "invnext_jax/heartbeat/"


class Heartbeat(NamedTuple):
    """The latest heartbeat that a process has published.

    Attributes:
      step: last completed step.
      activity: name of the activity that the process was in.
      seconds: duration of that activity so far.
      host: host name.
      received: `time.monotonic` when the report was received.
    """

    step: int
    activity: str
    seconds: float
    host: str
    received: float


class Watchdog:
    """A thread that checks the time since the last heartbeat and reports each stall once.

    A heartbeat is cheap, because it only sets a few fields. If C code holds the GIL so that this
    thread cannot run, the `faulthandler` thread writes the stack traces.

    Args:
      minutes: longest time without a heartbeat. 0 disables the watchdog.
      out: stream to write to. Standard error if None. A stream without a file descriptor, such
          as the output of a notebook, is replaced by the standard error of the process.
    """

    def __init__(self, minutes: float, out: TextIO | None = None):
        self._limit = 60 * minutes
        self._out = _with_descriptor(sys.stderr if out is None else out)
        self._step, self._activity, self._since = 0, "", time.monotonic()
        self._factor, self._reported = COMPILE_FACTOR, False
        self._heartbeats: dict[int, tuple[str, Heartbeat]] = {}
        self._stop, self._thread = threading.Event(), None

    def start(self) -> "Watchdog":
        """Starts the thread."""
        if self._limit and self._out is not None:
            self.heartbeat(0, "compilation", COMPILE_FACTOR)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def heartbeat(self, step: int, activity: str, factor: float = 1.0) -> None:
        """Records that the run has made progress.

        Args:
          step: last completed step.
          activity: name of the activity that starts now, for the report of a stall.
          factor: time limit of the activity, relative to that of a step.
        """
        self._step, self._activity, self._factor = step, activity, factor
        self._since, self._reported = time.monotonic(), False

    def _watch(self) -> None:
        pause = self._limit / 4
        while not self._stop.wait(pause):
            limit = self._limit * self._factor
            faulthandler.dump_traceback_later(limit + 4 * pause, file=self._out)
            elapsed = time.monotonic() - self._since
            self._exchange_heartbeats(elapsed)
            if elapsed > limit and not self._reported:
                self._reported = True
                self._report_stall(elapsed)
        faulthandler.cancel_dump_traceback_later()

    def _report_stall(self, elapsed: float) -> None:
        heartbeats = {process: beat for process, (_, beat) in self._heartbeats.items()}
        lines = [
            *list_stragglers(heartbeats, time.monotonic()),
            f"watchdog: no step for {elapsed / 60:.1f} minutes on {socket.gethostname()} (process "
            f"{jax.process_index()}): after step {self._step}, in {self._activity}; stack traces:",
        ]
        print(*lines, sep="\n", file=self._out, flush=True)
        faulthandler.dump_traceback(file=self._out)

    def _exchange_heartbeats(self, elapsed: float) -> None:
        """Publishes the heartbeat of this process. Process 0 reads those of all processes."""
        client = distributed.global_state.client
        if client is None or jax.process_count() == 1:
            return
        text = json.dumps([self._step, self._activity, round(elapsed), socket.gethostname()])
        try:
            key = f"{_KEY_PREFIX}{jax.process_index()}"
            client.key_value_set(key, text, allow_overwrite=True)
            entries = client.key_value_dir_get(_KEY_PREFIX) if jax.process_index() == 0 else []
        except jax.errors.JaxRuntimeError:  # the coordinator has exited, so the run ends anyway
            return
        for key, text in entries:
            process = int(key.rpartition("/")[2])
            if self._heartbeats.get(process, ("", None))[0] != text:
                beat = Heartbeat(*json.loads(text), time.monotonic())
                self._heartbeats[process] = text, beat

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def list_stragglers(heartbeats: Mapping[int, Heartbeat], now: float) -> list[str]:
    """Returns one line per process, sorted by step, then by the start of the activity.

    Args:
      heartbeats: last heartbeat of each process.
      now: the current `time.monotonic`.
    """

    def order(item: tuple[int, Heartbeat]) -> tuple[int, float]:
        return item[1].step, item[1].received - item[1].seconds

    return [
        f"watchdog: process {process}: step {beat.step}, in {beat.activity} for {beat.seconds} s, "
        f"{beat.host} (reported {now - beat.received:.0f} s ago)"
        for process, beat in sorted(heartbeats.items(), key=order)
    ]


def _with_descriptor(out: TextIO) -> TextIO | None:
    """Returns `out`, or standard error if `out` has no file descriptor."""
    try:
        out.fileno()
    except (AttributeError, OSError, ValueError):
        return sys.__stderr__
    return out
