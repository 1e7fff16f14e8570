"""The folder of a sweep: its lock, its description and the states of its jobs.

All files are JSON, and they are replaced atomically, so that a reader never finds an incomplete
file:

    sweep.json           the arms, the jobs and their commands
    sweep.lock           locked by the running command
    stop.request         exists while `--cancel` asks the running command to stop
    states/<job>.json    the state of a job
    logs/<job>.log       the output of a job, all attempts
    logs/<job>.lock      locked by a job that runs on this machine
    runs/<job>/          the workdir of a job
"""

import contextlib
import dataclasses
import datetime
import enum
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from invnext_jax import atomic_file, file_lock, json_file, sanitize
from invnext_jax.errors import UserError, summarize_error
from invnext_jax.field_checks import COUNT, OBJECT, TEXT, Fields, check_types, optional
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.job import Handle

_ADVICE = "repeat the command that started the sweep, with --config"


class Status(enum.Enum):
    """The status of a job."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"  # interrupted; the command of the sweep continues it
    FINISHED = "finished"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
      status: see `Status`.
      failures: number of failed attempts since the last `--retry_failed`.
      reason: the reason of the last failure.
      handle: see `job.Executor`.
      started: time at which the last attempt was submitted, in ISO 8601.
      ended: time at which the last attempt ended.
      saved_step: step of the last checkpoint when the last attempt was submitted.
    """

    status: Status = Status.WAITING
    failures: int = 0
    reason: str = ""
    handle: Handle | None = None
    started: str = ""
    ended: str = ""
    saved_step: int = 0

    @property
    def is_active(self) -> bool:
        """Whether the job was submitted and has not ended."""
        return self.status in (Status.QUEUED, Status.RUNNING)


_STATE: Fields = {
    **{"reason": TEXT, "started": TEXT, "ended": TEXT, "handle": optional(OBJECT)},
    **{"failures": COUNT, "saved_step": COUNT},
}


def now() -> str:
    """Returns the local time in ISO 8601, with the offset from UTC."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _parse_state(tree: Mapping[str, Any]) -> JobState:
    """Returns the state that a file describes.

    Raises:
      KeyError, TypeError, ValueError: a field or the status is unknown, or has a wrong type.
    """
    state = JobState(**{**tree, "status": Status(tree["status"])})
    check_types(vars(state), _STATE)
    reason = sanitize.shorten(" ".join(state.reason.split()))  # tables repeat it in many cells
    return dataclasses.replace(state, reason=reason)


class SweepFolder:
    """The folder of a sweep.

    Args:
      path: the folder, which is created by `write_sweep`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self._sweep, self._stop = self.path / "sweep.json", self.path / "stop.request"
        self._lock = self.path / "sweep.lock"
        self._warned: set[Path] = set()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context manager that holds the lock of the sweep.

        Raises:
          UserError: another command runs in the folder, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = file_lock.open_locked(self._lock)
        except file_lock.LockHeldError as error:
            raise UserError(
                f"another sweep command runs in {self.path} ({error}): wait for it, stop it "
                "with --cancel, or choose another --workdir"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write in --workdir={self.path}: {error.strerror}; choose another folder, "
                "or change its permissions"
            ) from error
        with file:
            yield

    def is_locked(self) -> bool:
        """Returns whether a sweep command runs in the folder."""
        return file_lock.is_held(self._lock)

    def read_host(self) -> str:
        """Returns the host of the last sweep command in the folder; "" if it is unknown."""
        return file_lock.read_host(self._lock)

    def exists(self) -> bool:
        """Returns whether the folder has a sweep."""
        return os.path.isfile(self._sweep)

    def write_sweep(self, sweep: ExpandedSweep) -> None:
        """Writes the description of the sweep."""
        atomic_file.write_text(self._sweep, json.dumps(sweep.to_json(self.path), indent=1) + "\n")

    def read_sweep(self) -> ExpandedSweep:
        """Reads the description of the sweep.

        Raises:
          UserError: the folder has no sweep, or its description is damaged.
        """
        if not self.exists():
            raise UserError(f"{self.path} has no sweep: start one with --config")
        tree = json_file.read_object(self._sweep, _ADVICE)
        try:
            return ExpandedSweep.from_json(tree, self.path)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self._sweep} is damaged ({error!r}): {_ADVICE}") from error

    def _state_path(self, name: str) -> Path:
        return self.path / "states" / f"{name}.json"

    def read_state(self, name: str) -> JobState:
        """Reads the state of a job.

        A file that is damaged or of another version is reported in the log, and counts as a job
        that has not started. The command of the sweep then reads the state from the workdir.
        """
        path = self._state_path(name)
        if not os.path.isfile(path):
            return JobState()
        try:
            return _parse_state(json_file.read_object(path))
        except (UserError, KeyError, TypeError, ValueError) as error:
            if path not in self._warned:
                self._warned.add(path)
                logging.warning(
                    "%s is damaged or of another version (%s): the job counts as waiting until the "
                    "command of the sweep reads its state from its workdir",
                    *(path, summarize_error(error)),
                )
            return JobState()

    def read_states(self, sweep: ExpandedSweep) -> dict[str, JobState]:
        """Reads the states of all jobs of a sweep, by name."""
        return {name: self.read_state(name) for name in sweep.jobs}

    def write_state(self, name: str, state: JobState) -> None:
        """Writes the state of a job."""
        tree: dict[str, Any] = dataclasses.asdict(state) | {"status": state.status.value}
        atomic_file.write_text(self._state_path(name), json.dumps(tree, indent=1) + "\n")

    def request_stop(self) -> None:
        """Asks the command that runs in the folder to stop."""
        atomic_file.write_text(self._stop, "")

    def stop_requested(self) -> bool:
        """Returns whether the command that runs in the folder should stop."""
        return os.path.exists(self._stop)

    def clear_stop_request(self) -> None:
        """Removes the request to stop."""
        self._stop.unlink(missing_ok=True)
