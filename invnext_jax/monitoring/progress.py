"""Measures the speed of a training run and displays its progress."""

import math
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax

from invnext_jax.monitoring.progress_meter import ProgressMeter


class StepTimer:
    """Measures clips per second and the share of time spent waiting for data."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._data_wait = 0.0
        self._step = None

    def add_data_wait(self, seconds: float) -> None:
        """Adds the time that the loop waited for a batch."""
        self._data_wait += seconds

    def restart(self, step: int) -> None:
        """Starts a new measurement after `step` steps."""
        self._start, self._data_wait, self._step = time.perf_counter(), 0.0, step

    def measure(self, step: int) -> dict[str, float]:
        """Ends the measurement after `step` steps and starts the next one.

        Returns:
            A dict with `clips_per_second` and `data_wait`, the share of time from 0 to 1.
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
    """Shows progress in process 0, as a bar on a terminal or else as one line per logged step.

    Args:
        total_steps: number of steps of the whole run.
        step: number of steps completed so far.
        batch_size: clips per step, used to compute the time left.
        out: stream to write to. Standard output if None.
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
