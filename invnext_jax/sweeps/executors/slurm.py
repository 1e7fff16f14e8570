"""Runs jobs on a SLURM cluster with its commands `sbatch`, `squeue` and `scancel`.

Each job has a name in SLURM that no other job of the user has, by which a restarted sweep finds it.
The accounting database, which not all clusters have, is not used.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.sweeps.executors.slurm_script import SlurmOptions, make_script, sbatch_flags
from invnext_jax.sweeps.job import Handle, Job, Phase, Poll, check_system

SYSTEM = "slurm"  # value of --executor
_COMMANDS = ("sbatch", "squeue", "scancel")
_COMMAND_SECONDS = 60.0
# Errors of `sbatch` that end without a change of the options.
_TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|temporarily unable|try again"
    r"|job submit limit|maxsubmit|connection (refused|timed out|reset)",
    re.IGNORECASE,
)
_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_RUNNING = (
    *("CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING"),
    *("SUSPENDED", "STOPPED", "RESIZING"),
)
_REASONS = {
    "TIMEOUT": "time limit",
    "DEADLINE": "deadline",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "canceled in SLURM",
    "BOOT_FAIL": "failure of a node",
    "NODE_FAIL": "failure of a node",
    "PREEMPTED": "preempted",
}
_INTERRUPTIONS = ("BOOT_FAIL", "NODE_FAIL", "PREEMPTED")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A line of `squeue`."""

    number: int
    state: str
    reason: str


class SlurmExecutor:
    """An `Executor` that submits each job with `sbatch`.

    Args:
      options: options of all jobs.
      max_jobs: maximum number of submitted jobs at a time; 0 for no limit.
      refresh_seconds: seconds between two calls of `squeue`.
      grace_seconds: seconds after the end of a job until its exit file is visible on this machine,
        because shared file systems cache folders.

    Raises:
      UserError: the commands of SLURM are not installed.
    """

    def __init__(
        self,
        options: SlurmOptions,
        max_jobs: int = 0,
        refresh_seconds: float = 10.0,
        grace_seconds: float = 60.0,
    ):
        missing = [name for name in _COMMANDS if shutil.which(name) is None]
        if missing:
            raise UserError(
                f"--executor=slurm needs the commands {', '.join(missing)}, which are not in PATH: "
                "start the sweep on a login node of the cluster"
            )
        self._options, self._max_jobs = options, max_jobs
        self._refresh_seconds, self._grace_seconds = refresh_seconds, grace_seconds
        self._active: set[str] = set()
        self._unsent: dict[str, float] = {}  # time of the next call of `sbatch` for a job
        self._ended: dict[str, float] = {}  # time at which a job without an exit file ended
        self._entries: dict[str, _Entry] | None = None  # last output of `squeue`, if it is known
        self._next_read = 0.0
        self._warned: set[str] = set()

    def has_room(self, job: Job) -> bool:
        """Returns whether fewer than the maximum number of jobs are submitted."""
        del job
        return not self._max_jobs or len(self._active) < self._max_jobs

    def submit(self, job: Job) -> Handle:
        """Submits the job. If SLURM does not respond, `poll` submits it later.

        Raises:
          UserError: SLURM rejects the job.
        """
        job.log.parent.mkdir(parents=True, exist_ok=True)
        _exit_file(job).unlink(missing_ok=True)
        self._active.add(job.name)
        self._ended.pop(job.name, None)
        number = self._send(job)
        return {"system": SYSTEM, "name": _slurm_name(job), "number": number}

    def _send(self, job: Job) -> int | None:
        """Calls `sbatch` and returns the number of the job; None if SLURM does not respond."""
        flags = sbatch_flags(job, _slurm_name(job), self._options)
        script = make_script(job, _exit_file(job), flags, self._options)
        path = job.log.with_suffix(".sbatch")
        atomic_file.write_text(path, script)
        result = _call(["sbatch", "--parsable", *flags, str(path)])
        self._next_read = 0.0  # the last output of `squeue` does not have the job
        if result.returncode == 0:
            self._unsent.pop(job.name, None)
            return int(result.stdout.split(";")[0])
        error = _last_line(result.stderr)
        if _TRANSIENT.search(result.stderr):
            self._warn(f"sbatch did not accept a job ({error}); it is repeated")
            self._unsent[job.name] = time.monotonic() + self._refresh_seconds
            return None
        self._active.discard(job.name)
        raise UserError(
            f"SLURM rejects the job {job.name}: {error}; change the --slurm options, which sbatch "
            "documents"
        )

    def poll(self, job: Job, handle: Handle | None) -> Poll:
        """Returns the state of the job with this name in SLURM."""
        check_system(job, handle, SYSTEM)
        self._active.add(job.name)
        entries = self._read_entries()
        if entries is None:
            return Poll(Phase.QUEUED)  # unknown
        entry = entries.get(_slurm_name(job))
        if entry is None and job.name in self._unsent:
            if time.monotonic() > self._unsent[job.name]:
                self._send(job)
            return Poll(Phase.QUEUED)
        state = entry.state if entry else ""
        self._unsent.pop(job.name, None)
        if state in _QUEUED:
            if "held" in entry.reason.lower():
                self._warn(
                    f"the job {entry.number} ({job.name}) is held by SLURM ({entry.reason}): "
                    f"`scontrol release {entry.number}` lets it start"
                )
            return Poll(Phase.QUEUED)
        if state in _RUNNING:
            return Poll(Phase.RUNNING)
        return self._read_end(job, state)

    def _read_end(self, job: Job, state: str) -> Poll:
        """Returns how a job ended, or that it runs if its exit file may appear soon."""
        record = _read_exit_file(job)
        if record is None and state not in _REASONS:
            ended = self._ended.setdefault(job.name, time.monotonic())
            if time.monotonic() < ended + self._grace_seconds:
                return Poll(Phase.RUNNING)
        self._active.discard(job.name)
        self._ended.pop(job.name, None)
        if record is None:
            return Poll(
                Phase.ENDED, reason=_REASONS.get(state, ""), stopped=state in _INTERRUPTIONS
            )
        code, stopped = record
        code = code if code <= 128 else 128 - code
        return Poll(Phase.ENDED, code, stopped=stopped or state in _INTERRUPTIONS)

    def cancel(self, job: Job, handle: Handle | None, *, force: bool = False) -> None:
        """Removes the job from the queue, or lets it save and stop if it runs."""
        del handle
        self._unsent.pop(job.name, None)
        named = [f"--name={_slurm_name(job)}", f"--user={os.getuid()}"]
        if force:
            _call(["scancel", *named])
        else:
            _call(["scancel", *named, "--state=PENDING"])
            _call(["scancel", *named, "--state=RUNNING", "--batch", "--signal=USR2"])
        self._next_read = 0.0

    def _read_entries(self) -> dict[str, _Entry] | None:
        """Returns the jobs of the user by name; None if SLURM does not respond."""
        if time.monotonic() < self._next_read:
            return self._entries
        columns = "--format=%i|%T|%r|%j"
        result = _call(["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", columns])
        self._next_read = time.monotonic() + self._refresh_seconds
        if result.returncode == 0:
            self._entries = _parse_squeue(result.stdout)
        else:
            self._entries = None
            self._warn(f"squeue fails ({_last_line(result.stderr)}); it is repeated")
        return self._entries

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logging.warning("%s", text)


def _parse_squeue(output: str) -> dict[str, _Entry]:
    """Returns one entry for each name. Jobs that have not ended are preferred, then newer ones."""
    entries: dict[str, _Entry] = {}
    for line in output.splitlines():
        fields = line.split("|", 3)
        if len(fields) < 4 or not fields[0].isdigit():  # elements of job arrays are not ours
            continue
        entry, name = _Entry(int(fields[0]), fields[1], fields[2]), fields[3]
        if name not in entries or _rank(entry) > _rank(entries[name]):
            entries[name] = entry
    return entries


def _rank(entry: _Entry) -> tuple[bool, bool, int]:
    return entry.state in _RUNNING, entry.state in _QUEUED, entry.number


def _slurm_name(job: Job) -> str:
    """Returns a name that also differs from those of equal jobs in other folders."""
    return f"{job.name}-{hashlib.sha256(str(job.log).encode()).hexdigest()[:8]}"


def _exit_file(job: Job) -> Path:
    return job.log.with_suffix(".exit.json")


def _read_exit_file(job: Job) -> tuple[int, bool] | None:
    """Returns the exit code, and whether a signal stopped the job; None if there is no file."""
    try:
        record = json.loads(_exit_file(job).read_text())
        return int(record["exit_code"]), bool(record["stopped"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _call(command: Sequence[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        error = f"try again: no response within {_COMMAND_SECONDS:.0f} s"
        return subprocess.CompletedProcess(command, 1, "", error)


def _last_line(text: str) -> str:
    """Returns the last line of an error of a command, without the name of the command."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error|fatal): ", "", lines[-1]) if lines else "no message"
