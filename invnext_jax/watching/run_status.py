"""Reads from the workdir of a run whether it runs, and whether it finished or failed."""

import contextlib
import dataclasses
import functools
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import file_lock
from invnext_jax.checkpointing import reader
from invnext_jax.checkpointing.workdir import LOCK
from invnext_jax.monitoring import metrics_file

# A run on another host is not seen by its lock on file systems whose locks are local.
_RECENT_SECONDS = 300.0
_SILENT_SECONDS = 120.0  # the age of the last record above which it is shown


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
      state: "not started", "running", "stopped", "finished" or "failed".
      text: a sentence about it; "" for none.
      share: share of the steps that are done; None if the number of steps is unknown.
      checkpoint: step of the newest checkpoint; None if there is none.
    """

    state: str
    text: str = ""
    share: float | None = None
    checkpoint: int | None = None


def read_status(
    workdir: Path,
    records: Sequence[Mapping[str, Any]],
    total_steps: int | None,
    saved: int | None,
) -> RunStatus:
    """Reads the status of a run.

    The text has the last step that is logged or saved.

    Args:
      workdir: workdir of the run, which need not exist.
      records: records of its metrics.jsonl.
      total_steps: number of steps of the run; None if it is unknown.
      saved: output of `read_saved_step`, which was called before the records were read.
    """
    logged = records[-1]["step"] if records else 0
    step = max(logged, saved or 0)
    share = min(1.0, step / total_steps) if total_steps else None
    of_total = f" of {total_steps:,}" if total_steps else ""
    place, age = _find_process(workdir), _record_age(workdir)
    if place is not None:
        text = f"step {step:,}{of_total}{place}" if records else f"no step is logged yet{place}"
        if records and age > _SILENT_SECONDS:
            text += f"; the last record is {age / 60:.0f} minutes old"
        return RunStatus("running", text, share, saved)
    if not records and saved is None:
        missing = "" if os.path.isdir(workdir) else "; the folder does not exist yet"
        return RunStatus("not started", f"no step is logged{missing}", share)
    if reason := _read_abort_reason(workdir, saved):
        return RunStatus("failed", reason, share, saved)
    if records and "loss" in records[-1] and records[-1]["loss"] is None:
        return RunStatus("failed", f"the loss of step {logged:,} is not finite", share, saved)
    if saved is not None and total_steps and saved >= total_steps:
        return RunStatus("finished", f"{saved:,} steps", share, saved)
    start = "from step 0, because no checkpoint exists" if saved is None else f"from step {saved:,}"
    text = f"after step {step:,}{of_total}; the same command continues {start}"
    return RunStatus("stopped", text, share, saved)


def read_saved_step(workdir: Path) -> int | None:
    """Returns the step of the newest checkpoint; None if there is none."""
    return max(reader.finished_steps(workdir / reader.CHECKPOINTS_FOLDER), default=None)


def read_versions(files: Iterable[Path]) -> list[tuple[int, int, int] | None]:
    """Returns the inode, size and modification time of each file; None if it is missing."""
    versions = []
    for file in files:
        try:
            status = file.stat()
            versions.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            versions.append(None)
    return versions


def _find_process(workdir: Path) -> str | None:
    """Returns the place of the run's process as text ("" for this host); None if none runs."""
    lock = workdir / LOCK
    try:
        held = file_lock.is_held(lock)
    except OSError:
        return None
    if not (host := file_lock.read_host(lock)):
        return None
    if host == socket.gethostname():
        return "" if held else None
    return f" on {host}" if held or _record_age(workdir) < _RECENT_SECONDS else None


def _record_age(workdir: Path) -> float:
    """Returns the age of the newest record in seconds; infinity if there is none."""
    try:
        return time.time() - (workdir / metrics_file.FILE).stat().st_mtime
    except OSError:
        return math.inf


def _read_abort_reason(workdir: Path, step: int | None) -> str:
    if step is None:
        return ""
    checkpoint = workdir / reader.CHECKPOINTS_FOLDER / str(step)
    return _parse_abort_reason(checkpoint, *read_versions([checkpoint / "meta" / "metadata"]))


@functools.lru_cache(maxsize=1)
def _parse_abort_reason(checkpoint: Path, _version: tuple[int, int, int] | None) -> str:
    """Returns the reason as a short text; "" if there is none. `_version` is that of the file."""
    with contextlib.suppress(OSError, ValueError):
        return reader.find_abort_reason(reader.read_json(checkpoint, "meta"))
    return ""
