"""How far long work is: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0


class Meter:
    """Shows how much of `total` is done, how fast it goes and how long it will take.

    Args:
        total: All there is to do.
        unit: What is counted, in the singular.
        shown: Whether to show anything.
    """

    def __init__(self, total: int, unit: str, shown: bool):
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=unit, disable=not (shown and on_terminal))
        self._lines = shown and not on_terminal
        self._total, self._unit, self._done = total, unit, 0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines:
            self._print()
        self._bar.close()

    def show(self, done: int) -> None:
        """Shows that `done` of all are done."""
        self._bar.update(max(0, done - self._done))
        self._done = max(done, self._done)
        if self._lines and time.monotonic() - self._last > LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            self._print()

    def _print(self) -> None:
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        left = f", {(self._total - self._done) / rate / 60:.0f} min left" if rate else ""
        text = f"{self._done} of {self._total} {self._unit}s, {rate:.1f}/s{left}"
        print(text, flush=True)
