"""How far long work is: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0


class ProgressMeter:
    """Shows how much of `total` is done, how fast it goes and how long it will take.

    Args:
        total: All there is to do.
        unit: What is counted, in the singular.
        shown: Whether to show anything.
        begun: What was done before; it does not count for the speed.
    """

    def __init__(self, total: int, unit: str, shown: bool, begun: int = 0):
        hidden = not (shown and sys.stderr.isatty())
        self._bar = tqdm(total=total, initial=begun, unit=unit, disable=hidden)
        self._lines = shown and hidden
        self._total, self._unit, self._begun, self._done = total, unit, begun, begun
        self._note = ""
        self._started = self._last = time.monotonic()

    def __enter__(self) -> "ProgressMeter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines:
            self._print()
        self._bar.close()

    def show(self, done: int, note: str = "") -> None:
        """Shows that `done` of all are done, and a note on them."""
        self._note = note
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(max(0, done - self._done))
        self._done = max(done, self._done)
        if self._lines and time.monotonic() - self._last > LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            self._print()

    def _print(self) -> None:
        rate = (self._done - self._begun) / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self._done} of {self._total} {self._unit}s", self._note, f"{rate:.1f}/s"]
        if rate:
            parts.append(f"{(self._total - self._done) / rate / 60:.0f} min left")
        print(", ".join(filter(None, parts)), flush=True)
