"""Speed of a training run, and its progress on the screen."""

import math
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax

from invnext_jax.monitoring.progress_meter import ProgressMeter


class StepTimer:
    """Measures clips per second and the share of time spent waiting for data, between logs."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._data_wait = 0.0
        self._step = None

    def add_data_wait(self, seconds: float) -> None:
        """Adds time that the loop waited for a batch."""
        self._data_wait += seconds

    def restart(self, step: int) -> None:
        """Starts a measurement after `step` steps."""
        self._start, self._data_wait, self._step = time.perf_counter(), 0.0, step

    def measure(self, step: int) -> dict[str, float]:
        """Returns the rates up to `step` steps and starts the next measurement.

        Returns:
            `clips_per_second`, and `data_wait`, a share from 0 to 1.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        steps = step - self._step
        rates = {
            "clips_per_second": steps * self._batch_size / seconds,
            "data_wait": min(self._data_wait / seconds, 1.0),
        }
        self.restart(step)
        return rates


class TrainingProgress:
    """Progress of process 0: a bar on a terminal, one line per logged step elsewhere.

    Args:
        total_steps: number of steps of the whole run.
        step: number of steps done so far.
        batch_size: clips per step, for the time left.
        out: stream to write to; standard output if None.
    """

    def __init__(self, total_steps: int, step: int, batch_size: int, out: TextIO | None = None):
        self._total_steps, self._step, self._batch_size = total_steps, step, batch_size
        self._meter = ProgressMeter(
            total_steps,
            "step",
            initial=step,
            quiet=jax.process_index() != 0,
            line_seconds=None,
            out=out,
        )

    def advance(self) -> None:
        """Counts one more step."""
        self._step += 1
        self._meter.update(self._step)

    def show(self, record: Mapping[str, Any]) -> None:
        """Shows a logged step; see `format_step`."""
        text = format_step(record, self._total_steps, self._batch_size)
        if self._meter.has_bar:
            self._meter.update(self._step, postfix=text.partition("  ")[2])
        else:
            self.log(text)

    def log(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._meter.log(text)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._meter.close()


def format_step(record: Mapping[str, Any], total_steps: int, batch_size: int) -> str:
    """Formats a logged step as one line: loss and its terms, learning rate, speed, time left.

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
        f"data {100 * record['data_wait']:.0f} %",
        f"{format_duration(seconds_left)} left",
    ]
    if record["skipped"]:
        parts.append(f"{record['skipped']} skipped")
    if record.get("dropped_videos"):
        parts.append(f"{record['dropped_videos']} videos dropped")
    return "  ".join(parts)


def _format_utilization(record: Mapping[str, Any]) -> list[str]:
    """Formats FLOP/s and the share of the peak, or of the measured ceiling without a peak."""
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
    """Formats seconds as h:mm:ss, or as m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
