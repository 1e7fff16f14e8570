"""Speed of a run, and its progress on the screen."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import tqdm


class Rates:
    """Measures clips/s and the share of time that the loop waited for data, from log to log."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._waited = 0.0
        self._step = None

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._waited += seconds

    def restart(self, step: int) -> None:
        """Starts a window after `step` steps."""
        self._start, self._waited, self._step = time.perf_counter(), 0.0, step

    def measure(self, step: int) -> dict[str, float]:
        """Closes the window after `step` steps and starts the next one."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        steps = step - self._step
        rates = {
            "clips_per_second": steps * self._batch_size / seconds,
            "data_wait": min(self._waited / seconds, 1.0),
        }
        self.restart(step)
        return rates


class Progress:
    """Progress of process 0: a bar on a terminal, plain lines elsewhere.

    Args:
        total_steps: steps of the whole run.
        step: steps done so far.
        batch_size: clips a step, for the time left.
        out: where to write, standard output if None.
    """

    def __init__(self, total_steps: int, step: int, batch_size: int, out: TextIO | None = None):
        self._total = total_steps
        self._batch_size = batch_size
        self._out = sys.stdout if out is None else out
        self._silent = jax.process_index() != 0
        self._bar = None
        if self._out.isatty() and not self._silent:
            self._bar = tqdm.tqdm(
                total=total_steps, initial=step, file=self._out, unit="step", dynamic_ncols=True
            )

    def advance(self) -> None:
        """Counts one more step."""
        if self._bar is not None:
            self._bar.update()

    def show(self, record: Mapping[str, Any]) -> None:
        """Shows a logged step; see `line`."""
        text = line(record, self._total, self._batch_size)
        if self._bar is not None:
            self._bar.set_postfix_str(text.partition("  ")[2], refresh=False)
        else:
            self.log(text)

    def log(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._out)
        elif not self._silent:
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def line(record: Mapping[str, Any], total_steps: int, batch_size: int) -> str:
    """One line on a logged step: loss and its terms, learning rate, speed, time left.

    Args:
        record: a record of metrics.jsonl.
        total_steps: steps of the whole run.
        batch_size: clips a step.
    """
    step = record["step"]
    terms = " ".join(
        f"{name.removeprefix('loss/')} {_short(value)}"
        for name, value in record.items()
        if name.startswith("loss/")
    )
    left = (total_steps - step) * batch_size / max(record["clips_per_second"], 1e-9)
    parts = [
        f"step {step}/{total_steps}",
        f"loss {_short(record['loss'])}" + (f" ({terms})" if terms else ""),
        f"lr {record['learning_rate']:.1e}",
        f"{record['clips_per_second']:.3g} clips/s",
        *_utilisation(record),
        f"data {100 * record['data_wait']:.0f} %",
        f"{duration(left)} left",
    ]
    if record["skipped"]:
        parts.append(f"{record['skipped']} skipped")
    if record.get("dropped_videos"):
        parts.append(f"{record['dropped_videos']} videos dropped")
    return "  ".join(parts)


def _utilisation(record: Mapping[str, Any]) -> list[str]:
    """FLOP/s, and its share of the device's peak, or else of the measured ceiling."""
    if "tflops_per_device" not in record:
        return []
    parts = [f"{record['tflops_per_device']:.3g} TFLOP/s"]
    if "mfu" in record:
        parts.append(f"MFU {100 * record['mfu']:.1f} %")
    elif "ceiling_share" in record:
        parts.append(f"{100 * record['ceiling_share']:.0f} % of a matmul")
    return parts


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
