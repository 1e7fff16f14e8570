"""Runs jobs as processes of this machine, in parallel if cores, GPUs and memory suffice.

A job holds a lock on a file next to its log, which the kernel releases when the process ends. The
locked file contains the cores and GPUs of the job. If the command of the sweep is killed, its jobs
continue; the next command finds them by their locks and waits for them.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from absl import logging

from invnext_jax import file_lock, sanitize
from invnext_jax.errors import UserError
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.job import Handle, Job, JobTooLargeError, Phase, Poll, check_system

SYSTEM = "local"  # value of --executor
LOCK_VARIABLE = "INVNEXT_SWEEP_LOCK"  # set in the environment of all processes of a job


@dataclasses.dataclass(frozen=True)
class Slot:
    """The part of the machine that a job occupies.

    Attributes:
      cores: numbers of its CPU cores.
      gpus: names of its GPUs.
      memory: bytes of host memory.
    """

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    memory: float = 0.0


class LocalExecutor:
    """An `Executor` that starts each job as a subprocess.

    Args:
      machine: the resources that all jobs share.
      max_jobs: maximum number of jobs at a time; 0 for no limit.
    """

    def __init__(self, machine: Machine, max_jobs: int = 0):
        self._machine, self._max_jobs = machine, max_jobs
        self._children: dict[str, subprocess.Popen] = {}
        self._slots: dict[str, Slot] = {}

    def has_room(self, job: Job) -> bool:
        """Returns whether enough cores, GPUs and memory are free for the job.

        An idle machine always has room: `submit` rejects a job that is too large for it. Jobs that
        need more memory than the machine has are rejected without waiting for others.
        """
        if not self._slots or job.resources.memory > self._machine.total_memory:
            return True
        if self._max_jobs and len(self._slots) >= self._max_jobs:
            return False
        return self._find_slot(job) is not None

    def submit(self, job: Job) -> Handle:
        """Starts the job.

        Raises:
          JobTooLargeError: the machine has not enough memory.
          UserError: the machine has not enough GPUs or cores, or the log cannot be written.
        """
        self._check_size(job)
        slot = self._find_slot(job) or self._idle_slot(job)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            _open_file(_lock_path(job), "a+") as lock,
            _open_file(job.log, "ab") as log,
        ):
            try:
                file_lock.acquire(lock)
            except file_lock.LockHeldError:  # an earlier process of the job; `poll` waits for it
                return _make_handle(_read_slot(job))
            lock.truncate(0)
            lock.write(json.dumps(dataclasses.asdict(slot)) + "\n")
            lock.flush()
            shown = sanitize.for_display(shlex.join(job.command))
            log.write(f"$ {shown}\n".encode())
            log.flush()
            with _affinity(slot.cores):
                self._children[job.name] = subprocess.Popen(
                    job.command,
                    cwd=job.folder,
                    env=self._environment(job, slot),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal must not reach it
                    pass_fds=(lock.fileno(),),  # it keeps the lock until it ends
                )
        self._slots[job.name] = slot
        return _make_handle(slot)

    def poll(self, job: Job, handle: Handle | None) -> Poll:
        """Returns whether the job's process, or one that an earlier command started, is alive."""
        check_system(job, handle, SYSTEM)
        if job.name in self._children:
            code = self._children[job.name].poll()
            if code is None:
                return Poll(Phase.RUNNING)
            del self._children[job.name]
            self._slots.pop(job.name, None)
            return Poll(Phase.ENDED, code)
        if is_running(job):
            self._slots[job.name] = _read_slot(job)
            return Poll(Phase.RUNNING)
        self._slots.pop(job.name, None)
        return Poll(Phase.ENDED)

    def cancel(self, job: Job, handle: Handle | None, *, force: bool = False) -> None:
        """Sends SIGTERM to the job's main process, or SIGKILL to all of its processes."""
        del handle
        child = self._children.get(job.name)
        leaders = [child.pid] if child else list(_find_leaders(_lock_path(job)))
        for pid in leaders:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL) if force else os.kill(pid, signal.SIGTERM)

    def _environment(self, job: Job, slot: Slot) -> dict[str, str]:
        environment = {**os.environ, **job.environment, LOCK_VARIABLE: str(_lock_path(job))}
        environment["PYTHONUNBUFFERED"] = "1"  # `--status` shows the last lines of the log
        if slot.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        else:
            environment["JAX_PLATFORMS"] = "cpu"
        return environment

    def _find_slot(self, job: Job) -> Slot | None:
        """Returns free cores and GPUs for a job; None if there are not enough."""
        needed, used = job.resources, list(self._slots.values())
        taken = {core for slot in used for core in slot.cores}
        taken |= {gpu for slot in used for gpu in slot.gpus}
        cores = [core for core in self._machine.cores if core not in taken]
        gpus = [gpu for gpu in self._machine.gpus if gpu not in taken]
        memory = self._machine.memory - sum(slot.memory for slot in used)
        count = max(1, needed.cores)
        if len(cores) < count or len(gpus) < needed.devices or memory < needed.memory:
            return None
        return Slot(tuple(cores[:count]), tuple(gpus[: needed.devices]), needed.memory)

    def _idle_slot(self, job: Job) -> Slot:
        """Returns the slot of a job that needs more memory than other programs leave available."""
        logging.warning(
            "the job %s needs %.1f GB of memory by the estimate, but %.1f GB are available: it may "
            "be killed unless other programs end",
            *(job.name, job.resources.memory / 1e9, self._machine.memory / 1e9),
        )
        cores, gpus = self._machine.cores, self._machine.gpus
        count = max(1, job.resources.cores)
        return Slot(cores[:count], gpus[: job.resources.devices], self._machine.memory)

    def _check_size(self, job: Job) -> None:
        """Checks that the job fits an idle machine.

        Raises:
          JobTooLargeError: the job needs more memory than the machine has.
          UserError: the jobs need more GPUs or cores than the machine has.
        """
        needed, machine = job.resources, self._machine
        for what, wanted, available in (
            ("GPUs", needed.devices, len(machine.gpus)),
            ("cores", needed.cores, len(machine.cores)),
        ):
            if wanted > available:
                raise UserError(
                    f"the job {job.name} needs {wanted} {what}, and this machine has "
                    f"{available}: change --devices_per_job or --cores_per_job, or choose "
                    "another --executor"
                )
        if excess := machine.describe_excess("it", needed.memory):
            raise JobTooLargeError(
                f"{excess}: reduce the batch size or increase accumulate in the sweep file or "
                "with --set, or choose another --executor"
            )


def _open_file(path: Path, mode: str) -> IO:
    try:
        return file_lock.open_file(path, mode)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): remove it, or choose another --workdir"
        ) from error


def _make_handle(slot: Slot) -> Handle:
    return {"system": SYSTEM, **dataclasses.asdict(slot)}


def _read_slot(job: Job) -> Slot:
    """Returns the slot of a running job of an earlier command."""
    try:
        fields = json.loads(_lock_path(job).read_text())
        return Slot(tuple(fields["cores"]), tuple(fields["gpus"]), fields["memory"])
    except (OSError, ValueError, KeyError, TypeError):  # it was killed while it was written
        return Slot()


def is_running(job: Job) -> bool:
    """Returns whether a process of a job runs on this machine."""
    return file_lock.is_held(_lock_path(job))


def _lock_path(job: Job) -> Path:
    return job.log.with_suffix(".lock")


@contextlib.contextmanager
def _affinity(cores: tuple[int, ...]) -> Iterator[None]:
    """Restricts this thread, and processes that are started in the context, to some cores."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # the cores are no longer available
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _find_leaders(lock: Path) -> Iterator[int]:
    """Yields the main processes of a job that an earlier command started, by their environment."""
    marker = f"{LOCK_VARIABLE}={lock}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if marker in variables and os.getsid(pid) == pid:
                yield pid
        except OSError:  # it has ended, or it belongs to another user
            continue
