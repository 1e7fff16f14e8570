"""Progress of long-running work: a tqdm bar on a terminal, plain lines in a log."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

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


class TrainingProgress:
    """Shows the progress of a run, as a bar on a terminal or else as one line per logged step.

    Args:
      total_steps: number of steps of the whole run.
      step: number of steps completed so far.
      batch_size: clips per step, used to compute the time left.
      quiet: whether to suppress all output.
      out: stream to write to. Standard output if None.
    """

    def __init__(
        self,
        total_steps: int,
        step: int,
        batch_size: int,
        *,
        quiet: bool = False,
        out: TextIO | None = None,
    ):
        self._total_steps, self._step, self._batch_size = total_steps, step, batch_size
        self._meter = ProgressMeter(
            total_steps, "step", initial=step, quiet=quiet, line_seconds=None, out=out
        )

    def advance(self) -> None:
        """Counts one more completed step."""
        self._step += 1
        self._meter.update(self._step)

    def show(self, record: Mapping[str, Any]) -> None:
        """Shows the record of a logged step, formatted by `format_step`."""
        text = format_step(record, self._total_steps, self._batch_size)
        if self._meter.has_bar:
            self._meter.update(self._step, postfix=text.partition("  ")[2])
        else:
            self.log(text)

    def log(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._meter.log(text)

    def close(self) -> None:
        """Closes the progress bar, which stays visible."""
        self._meter.close()


def format_step(record: Mapping[str, Any], total_steps: int, batch_size: int) -> str:
    """Formats a logged step as one line: loss, loss terms, learning rate, speed and time left.

    Args:
      record: a record of metrics.jsonl.
      total_steps: number of steps of the whole run.
      batch_size: clips per step.
    """
    step = record["step"]
    terms = " ".join(
        f"{name.removeprefix('loss/')} {_format_loss(value)}"
        for name, value in record.items()
        if name.startswith("loss/")
    )
    seconds_left = (total_steps - step) * batch_size / max(record["clips_per_second"], 1e-9)
    parts = [
        f"step {step}/{total_steps}",
        f"loss {_format_loss(record['loss'])}" + (f" ({terms})" if terms else ""),
        f"lr {record['learning_rate']:.1e}",
        f"{record['clips_per_second']:.3g} clips/s",
        *_format_utilization(record),
        f"data {_format_data_wait(record)}",
        f"{format_duration(seconds_left)} left",
    ]
    if record["skipped"]:
        parts.append(f"{record['skipped']} skipped")
    if record.get("dropped_videos"):
        parts.append(f"{record['dropped_videos']} clips dropped")
    if record.get("failed_reads"):
        parts.append(f"{record['failed_reads']} failed reads")
    return "  ".join(parts)


def _format_data_wait(record: Mapping[str, Any]) -> str:
    """Formats the share of time spent waiting for data: the mean and the range over all hosts."""
    mean, least, most, host = (
        record.get(f"hosts/data_wait/{name}") for name in ("mean", "min", "max", "worst_host")
    )
    if mean is None:
        return f"{100 * record['data_wait']:.0f} %"
    return f"{100 * mean:.0f} % ({100 * least:.0f} to {100 * most:.0f} %, most on process {host})"


def _format_utilization(record: Mapping[str, Any]) -> list[str]:
    """Formats the FLOP/s and the MFU, or the share of the ceiling if the peak is unknown."""
    if "tflops_per_device" not in record:
        return []
    parts = [f"{record['tflops_per_device']:.3g} TFLOP/s"]
    if "mfu" in record:
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    elif "ceiling_share" in record:
        parts.append(f"{100 * record['ceiling_share']:.0f} % of a matmul")
    return parts


def _format_loss(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss, or as m:ss if less than one hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
