"""Progress of long-running work: a tqdm bar on a terminal, plain lines in a log."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0


class ProgressMeter:
    """Shows the number of units of work done, the speed and the time left.

    Args:
        total: Number of units.
        unit: Name of a unit, in the singular.
        initial: Number of units done earlier, which are excluded from the speed.
        quiet: Whether to suppress all output.
        line_seconds: Minimum seconds between plain lines. If None, only `log` prints lines.
        out: Stream to write to. Standard output if None.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        initial: int = 0,
        quiet: bool = False,
        line_seconds: float | None = LINE_SECONDS,
        out: TextIO | None = None,
    ):
        self._total, self._unit, self._initial, self._done = total, unit, initial, initial
        self._out = sys.stdout if out is None else out
        self._quiet, self._bar = quiet, None
        if not quiet and self._out.isatty():
            self._bar = tqdm(
                total=total, initial=initial, unit=unit, file=self._out, dynamic_ncols=True
            )
        self._line_seconds = line_seconds if self._bar is None else None
        self._postfix = ""
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressMeter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def has_bar(self) -> bool:
        """Whether a bar is shown instead of plain lines."""
        return self._bar is not None

    def update(self, done: int, postfix: str | None = None) -> None:
        """Sets the number of units done and, unless it is None, the text shown after the number."""
        if postfix is not None:
            self._postfix = postfix
        added, self._done = max(0, done - self._done), max(done, self._done)
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix, refresh=False)
            self._bar.update(added)
        elif self._line_seconds is not None:
            if time.monotonic() - self._last_line > self._line_seconds:
                self._last_line = time.monotonic()
                self.log(self._format_line())

    def log(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        elif not self._quiet:
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Closes the bar, which stays visible, or prints the last plain line."""
        if self._bar is not None:
            self._bar.close()
        elif self._line_seconds is not None:
            self.log(self._format_line())

    def _format_line(self) -> str:
        rate = (self._done - self._initial) / max(time.monotonic() - self._start, 1e-9)
        parts = [f"{self._done} of {self._total} {self._unit}s", self._postfix, f"{rate:.1f}/s"]
        if rate:
            parts.append(f"{(self._total - self._done) / rate / 60:.0f} min left")
        return ", ".join(filter(None, parts))
