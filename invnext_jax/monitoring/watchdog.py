"""Tells when no step ends for long: stack traces of all threads, host, last step, who lags."""

import faulthandler
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, TextIO

import jax
from jax._src import distributed  # as Orbax: there is no public way to the key-value store

COMPILE_FACTOR = 6  # a compilation may take so many times the limit of a step
_HEARTBEAT = "invnext_jax/heartbeat/"


class Heard(NamedTuple):
    """What a process last said of itself, and when that was heard (`time.monotonic`)."""

    step: int
    doing: str
    seconds: float  # that it had been doing so
    host: str
    when: float


class Watchdog:
    """A thread that looks at how long the last beat is past; says so once a stall.

    Costs the loop nothing but setting a few fields. Where even this thread cannot run, because
    something holds the interpreter's lock, faulthandler's own thread writes the traces.

    Args:
        minutes: longest time without a beat; 0: no watchdog.
        out: where to write, standard error if None; what has no file descriptor, as the output of
            a notebook, is replaced by the process's own standard error.
    """

    def __init__(self, minutes: float, out: TextIO | None = None):
        self._limit = 60 * minutes
        self._out = _with_descriptor(sys.stderr if out is None else out)
        self._step, self._doing, self._since = 0, "", time.monotonic()
        self._factor, self._told = COMPILE_FACTOR, False
        self._heard: dict[int, tuple[str, Heard]] = {}
        self._end, self._thread = threading.Event(), None

    def start(self) -> "Watchdog":
        """Starts to watch."""
        if self._limit and self._out is not None:
            self.beat(0, "compilation", COMPILE_FACTOR)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def beat(self, step: int, doing: str, factor: float = 1.0) -> None:
        """Notes that the run is alive.

        Args:
            step: the last step done.
            doing: what begins now, for the message.
            factor: how many times the limit this may take.
        """
        self._step, self._doing, self._factor = step, doing, factor
        self._since, self._told = time.monotonic(), False

    def _watch(self) -> None:
        pause = self._limit / 4
        while not self._end.wait(pause):
            limit = self._limit * self._factor
            faulthandler.dump_traceback_later(limit + 4 * pause, file=self._out)
            past = time.monotonic() - self._since
            self._report_to_others(past)
            if past > limit and not self._told:
                self._told = True
                self._tell(past)
        faulthandler.cancel_dump_traceback_later()

    def _tell(self, past: float) -> None:
        lines = [
            f"watchdog: no step for {past / 60:.1f} minutes on {socket.gethostname()} (process "
            f"{jax.process_index()}): after step {self._step}, in {self._doing}; the threads:"
        ]
        heard = {process: said for process, (_, said) in self._heard.items()}
        print(
            *list_stragglers(heard, time.monotonic()), *lines, sep="\n", file=self._out, flush=True
        )
        faulthandler.dump_traceback(file=self._out)

    def _report_to_others(self, past: float) -> None:
        client = distributed.global_state.client
        if client is None or jax.process_count() == 1:
            return
        text = json.dumps([self._step, self._doing, round(past), socket.gethostname()])
        try:
            key = f"{_HEARTBEAT}{jax.process_index()}"
            client.key_value_set(key, text, allow_overwrite=True)
            found = client.key_value_dir_get(_HEARTBEAT) if jax.process_index() == 0 else []
        except jax.errors.JaxRuntimeError:  # the coordinator is gone: the run ends anyway
            return
        for key, text in found:
            process = int(key.rpartition("/")[2])
            if self._heard.get(process, ("", None))[0] != text:
                self._heard[process] = text, Heard(*json.loads(text), time.monotonic())

    def close(self) -> None:
        """Ends the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()


def list_stragglers(heard: Mapping[int, Heard], now: float) -> list[str]:
    """A line for each process: those at the lowest step first, of these the longest silent.

    Args:
        heard: by process.
        now: the time, by the clock of `Heard.when`.
    """

    def order(item: tuple[int, Heard]) -> tuple[int, float]:
        return item[1].step, item[1].when - item[1].seconds

    return [
        f"watchdog: process {process}: step {said.step}, in {said.doing} for {said.seconds} s, "
        f"{said.host} (said {now - said.when:.0f} s ago)"
        for process, said in sorted(heard.items(), key=order)
    ]


def _with_descriptor(out: TextIO) -> TextIO | None:
    try:
        out.fileno()
    except (AttributeError, OSError, ValueError):
        return sys.__stderr__
    return out
