"""A job: one command of a sweep, and the interface of the systems that run jobs.

A job is a command line, not a Python object, so that any system can start it: processes of this
machine, SLURM or a cluster. Its outputs are files in its workdir. A job that was stopped continues
if the same command is started again.
"""

import dataclasses
import enum
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from invnext_jax.errors import UserError

MAX_MOVED = 8  # options of a command that name the folder of the sweep


@dataclasses.dataclass(frozen=True)
class Resources:
    """Requirements of a job.

    Attributes:
      hosts: number of machines. Each runs the command once.
      devices: number of accelerators on each host. 0: the job runs on CPU cores.
      device: kind of the accelerators, a name in `planning.devices.DEVICES`; "" if it is unknown.
      cores: number of CPU cores on each host. 0: unknown.
      memory: bytes of host memory on each host. 0: unknown.
      hours: predicted duration. 0: unknown.
    """

    hosts: int = 1
    devices: int = 0
    device: str = ""
    cores: int = 0
    memory: float = 0.0
    hours: float = 0.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A command of a sweep.

    Attributes:
      name: unique name in the sweep, which contains a hash of everything that changes the result.
        It only has letters, digits and hyphens.
      command: the program and its arguments. Relative paths start at `folder`.
      folder: the folder in which the command is started.
      workdir: absolute path of the folder in which the command writes its outputs.
      log: absolute path of the file to which the output of the command is appended.
      environment: variables that are set in addition to those of the sweep's process.
      resources: requirements of the job.
      dependencies: names of the jobs that must be finished before this job starts.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    workdir: Path
    log: Path
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resources: Resources = Resources()
    dependencies: tuple[str, ...] = ()


def move_command(command: Sequence[str], old: str, new: Path) -> tuple[str, ...]:
    """Replaces the folder of a sweep, `old`, at the start of the values of options.

    Raises:
      ValueError: the folder is not an absolute path, or too many options name it.
    """
    start = f"={old}/"
    places = {n for n, part in enumerate(command) if part[part.find("=") :].startswith(start)}
    if not os.path.isabs(old) or len(places) > MAX_MOVED:
        raise ValueError(f"more than {MAX_MOVED} options name the folder {old!r:.80}")
    return tuple(
        part.replace(start, f"={new}/", 1) if n in places else part
        for n, part in enumerate(command)
    )


class Phase(enum.Enum):
    """State of a submitted job, as reported by a system.

    `ENDED` also includes jobs that are unknown to the system, such as jobs from before a restart of
    the machine. Whether an ended job is finished is read from its workdir.
    """

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclasses.dataclass(frozen=True)
class Poll:
    """The phase of a job and, if it has ended, its exit code.

    Attributes:
      phase: see `Phase`.
      exit_code: exit code of the command, or minus the number of the signal that ended it; None
        if it is unknown.
      reason: why the system ended the job, such as "time limit"; "" if the system did not.
      stopped: whether the system interrupted the job, for example by a preemption. Such a job is
        submitted again, and the interruption does not count as a failure.
    """

    phase: Phase
    exit_code: int | None = None
    reason: str = ""
    stopped: bool = False


# The JSON-compatible name of a submitted job, from which a restarted sweep finds it again.
Handle = Mapping[str, Any]


def check_system(job: Job, handle: Handle | None, system: str) -> None:
    """Checks that a job was submitted to the system that polls it.

    Args:
      job: the job.
      handle: output of `Executor.submit`. Its field "system" is the value of --executor.
      system: the system that polls the job.

    Raises:
      UserError: the job was submitted to another system.
    """
    submitted = (handle or {}).get("system", system)
    if submitted != system:
        raise UserError(
            f"the job {job.name} was submitted with --executor={submitted}: repeat the command "
            "with this option"
        )


class JobTooLargeError(UserError):
    """A job can never run on the system of an executor. Other jobs of the sweep may."""


class Executor(Protocol):
    """A system that runs jobs. None of the methods waits for a job.

    The runner of a sweep submits a job when its dependencies are finished and `has_room` returns
    True, and polls it until it has ended. Handles are saved, and a restarted sweep polls the jobs
    that were submitted before it was killed. The handle is None if the sweep was killed before it
    saved the handle. The executor must then find the job by its name, so that no job runs twice at
    the same time.
    """

    def has_room(self, job: Job) -> bool:
        """Returns whether the job can be submitted now."""

    def submit(self, job: Job) -> Handle:
        """Starts or queues a job, and returns its handle.

        Raises:
          JobTooLargeError: the job needs more memory than the system has.
          UserError: the system rejects the job for a reason that may hold for all jobs.
        """

    def poll(self, job: Job, handle: Handle | None) -> Poll:
        """Returns the state of a job that this executor or one of an earlier process submitted."""

    def cancel(self, job: Job, handle: Handle | None, *, force: bool = False) -> None:
        """Asks a job to save and stop. It has ended when `poll` returns `Phase.ENDED`.

        Args:
          job: the job.
          handle: output of `submit`; None if it is lost.
          force: end the job immediately, without saving.
        """
