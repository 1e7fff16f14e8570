"""Reads from the workdir of a job whether it is finished and whether its numbers are finite."""

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from invnext_jax import regular_file
from invnext_jax.checkpointing import reader
from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file
from invnext_jax.monitoring import metrics_file
from invnext_jax.sweeps.expansion import PlannedJob
from invnext_jax.sweeps.step_config import Kind

NON_FINITE = "non-finite"  # the reason of a failure
_TAIL_BYTES = 2**16


class Outcome(NamedTuple):
    """Whether a job is finished, and the reason why its result cannot be used ("" if it can)."""

    finished: bool
    reason: str = ""


def read_outcome(planned: PlannedJob) -> Outcome:
    """Reads the outcome of a job that is not running."""
    workdir = planned.job.workdir
    if planned.kind is Kind.EVALUATE:
        return _read_evaluation(workdir)
    if _last_checkpoint(workdir) < planned.total_steps:
        return Outcome(False)
    last = read_last_record(workdir)
    return Outcome(True, NON_FINITE if "loss" in last and last["loss"] is None else "")


def check_distinct(jobs: Iterable[PlannedJob]) -> None:
    """Checks that the jobs have different results, because tables keep those of each job in memory.

    Raises:
      UserError: two jobs have the same file.
    """
    found: dict[tuple[int, int], Path] = {}
    for planned in jobs:
        for name in (results_file.RESULTS, metrics_file.FILE):
            path = planned.job.workdir / name
            with contextlib.suppress(OSError):
                status = os.stat(path)
                other = found.setdefault((status.st_dev, status.st_ino), path)
                if other != path:
                    raise UserError(f"{path} and {other} are the same file: remove the link")


def read_saved_step(planned: PlannedJob) -> int:
    """Returns the step of the last checkpoint of a training; 0 if there is none."""
    return max(0, _last_checkpoint(planned.job.workdir)) if planned.kind is Kind.TRAIN else 0


def _last_checkpoint(workdir: Path) -> int:
    """Returns the step of the last checkpoint; -1 if there is none."""
    return max(reader.finished_steps(workdir / reader.CHECKPOINTS_FOLDER), default=-1)


def _read_evaluation(workdir: Path) -> Outcome:
    if not os.path.isfile(workdir / results_file.RESULTS):
        return Outcome(False)
    try:
        rows = results_file.read_results(workdir)["rows"]
    except UserError:
        return Outcome(False)
    values = [row["value"] for row in rows if row["name"] == "encoder"]
    finite = all(value is not None and math.isfinite(value) for value in values)
    return Outcome(True, "" if finite else NON_FINITE)


def read_last_values(workdir: Path) -> dict[str, float | None]:
    """Returns the last logged value of each metric of a run; {} if there is none.

    Not all metrics are in each record. A value that is not finite is None.
    """
    try:
        records = metrics_file.read_numbers(workdir)
    except UserError:  # a damaged line, or too many values
        return read_last_record(workdir)
    return {name: value for record in records for name, value in record.items()}


def read_last_record(workdir: Path) -> dict[str, float | None]:
    """Returns the last complete record of a run's metrics.jsonl; {} if there is none."""
    try:
        lines = regular_file.read_tail(workdir / metrics_file.FILE, _TAIL_BYTES).split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # an incomplete or damaged line
            continue
        if isinstance(record, dict) and metrics_file.is_step(record.get("step")):
            return metrics_file.keep_numbers(record)
    return {}
