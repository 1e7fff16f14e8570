"""Runs the jobs of a sweep until all of them are finished or have failed.

A job starts when its dependencies are finished. All decisions depend on the files of the sweep, and
a state is written before and after each action. The runner can therefore be killed at any moment.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

from invnext_jax.errors import UserError
from invnext_jax.sweeps import outcome as outcome_lib
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedJob, join_names
from invnext_jax.sweeps.job import Executor, JobTooLargeError, Phase, Poll
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder, now

# Exit codes of `errors.exit_on_user_error`. The result of such a job does not change if it is
# repeated.
_USER_ERROR, _NON_FINITE = 2, 3


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a runner.

    Attributes:
      retries: number of times that a failed job is started again.
      poll_seconds: seconds between two polls of all jobs.
      stop_seconds: seconds that jobs have to save when the sweep stops; then they are killed.
    """

    retries: int = 1
    poll_seconds: float = 1.0
    stop_seconds: float = 600.0


class Runner:
    """Runs the jobs of a sweep. The caller holds the lock of the folder.

    Args:
      folder: the folder of the sweep.
      sweep: the jobs.
      executor: the system that runs the jobs.
      options: see `RunOptions`.
      should_stop: function that returns whether to stop all jobs; called at each poll.
      log: function that writes a line.
    """

    def __init__(
        self,
        folder: SweepFolder,
        sweep: ExpandedSweep,
        executor: Executor,
        options: RunOptions,
        should_stop: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = print,
    ):
        self._folder, self._sweep, self._executor = folder, sweep, executor
        self._options, self._should_stop, self._log = options, should_stop, log
        self._states = folder.read_states(sweep)

    def run(self) -> dict[str, JobState]:
        """Runs all jobs and returns their states.

        Raises:
          UserError: the executor refuses a job. All running jobs are stopped first.
        """
        self.restore_states()
        if active := [planned.job.name for planned in self._active_jobs()]:
            self._log(
                "not started again, because an earlier command started them and they have not "
                f"ended: {join_names(active)}"
            )
        try:
            while not self._is_done():
                if self._should_stop() or self._folder.stop_requested():
                    self.stop()
                    break
                self._poll_jobs()
                self._submit_jobs()
                if not self._is_done():
                    time.sleep(self._options.poll_seconds)
        except UserError:
            self.stop()
            raise
        return dict(self._states)

    def stop(self) -> None:
        """Asks all jobs to save and stop, and waits until they have ended."""
        deadline = time.monotonic() + self._options.stop_seconds
        active, forced = self._active_jobs(), False
        if active:
            names = join_names([planned.job.name for planned in active])
            self._log(f"stopping {names}, after a save")
        self._cancel(active)
        while active := self._active_jobs():
            if not forced and time.monotonic() > deadline:
                forced = True
                self._cancel(active, force=True)
            time.sleep(min(0.2, self._options.poll_seconds))
            for planned in active:
                self._end_if_stopped(planned)

    def _cancel(self, jobs: Sequence[PlannedJob], *, force: bool = False) -> None:
        for planned in jobs:
            handle = self._states[planned.job.name].handle
            self._executor.cancel(planned.job, handle, force=force)

    def _end_if_stopped(self, planned: PlannedJob) -> None:
        """Writes the state of an active job if it has ended. This does not count as a failure."""
        poll = self._executor.poll(planned.job, self._states[planned.job.name].handle)
        if poll.phase is Phase.ENDED:
            self._end_job(planned, dataclasses.replace(poll, stopped=True))

    def restore_states(self, *, only_active: bool = False) -> None:
        """Compares the states with the outputs and with the jobs that are still running.

        Args:
          only_active: whether to skip jobs that were not running.
        """
        for name, planned in reversed(self._sweep.jobs.items()):  # dependents come first
            state = self._states[name]
            if state.is_active:
                self._end_if_stopped(planned)
            elif state.status is not Status.FAILED and not only_active:
                # The outputs decide, because they may have been copied or removed.
                result = outcome_lib.read_outcome(planned)
                if result.finished and state.status is not Status.FINISHED:
                    status = Status.FAILED if result.reason else Status.FINISHED
                    self._write(name, JobState(status, reason=result.reason))
                elif state.status is Status.FINISHED and not result.finished:
                    if self._is_needed(name):
                        self._write(name, JobState())

    def _is_needed(self, name: str) -> bool:
        """Returns whether the outputs of a finished job are needed.

        Checkpoints of a training may be removed when all jobs that depend on it are finished.
        """
        users = [n for n, p in self._sweep.jobs.items() if name in p.job.dependencies]
        done = [self._states[user].status is Status.FINISHED for user in users]
        return not users or not all(done)

    def _active_jobs(self) -> list[PlannedJob]:
        return [p for name, p in self._sweep.jobs.items() if self._states[name].is_active]

    def _is_done(self) -> bool:
        return not self._active_jobs() and not any(map(self._is_ready, self._sweep.jobs.values()))

    def _is_ready(self, planned: PlannedJob) -> bool:
        """Returns whether a job can be submitted."""
        state = self._states[planned.job.name]
        waits = state.status in (Status.WAITING, Status.STOPPED)
        needed = [self._states[name].status for name in planned.job.dependencies]
        return waits and all(status is Status.FINISHED for status in needed)

    def _submit_jobs(self) -> None:
        for name, planned in self._sweep.jobs.items():
            if not self._is_ready(planned) or not self._executor.has_room(planned.job):
                continue
            state = self._states[name]
            # Written before the job starts: if this process is killed in between, the next one
            # asks the executor whether the job exists.
            state = JobState(
                *(Status.QUEUED, state.failures, state.reason),
                started=now(),
                saved_step=outcome_lib.read_saved_step(planned),
            )
            self._write(name, state)
            try:
                handle = self._executor.submit(planned.job)
            except JobTooLargeError as error:
                state = dataclasses.replace(state, status=Status.FAILED, reason=str(error))
                self._write(name, state)
                self._report(planned, f"failed: {error}")
                continue
            except UserError:
                self._write(name, dataclasses.replace(state, status=Status.WAITING))
                raise
            self._write(name, dataclasses.replace(state, handle=handle))
            self._report(planned, "submitted")

    def _poll_jobs(self) -> None:
        for planned in self._active_jobs():
            state = self._states[planned.job.name]
            poll = self._executor.poll(planned.job, state.handle)
            if poll.phase is Phase.ENDED:
                self._end_job(planned, poll)
            elif poll.phase is Phase.RUNNING and state.status is Status.QUEUED:
                self._write(planned.job.name, dataclasses.replace(state, status=Status.RUNNING))

    def _end_job(self, planned: PlannedJob, poll: Poll) -> None:
        """Writes the state of a job that has ended."""
        state = self._states[planned.job.name]
        state = dataclasses.replace(state, handle=None, ended=now())
        result = outcome_lib.read_outcome(planned)
        if result.reason or poll.exit_code == _NON_FINITE:
            reason = result.reason or outcome_lib.NON_FINITE
            state = dataclasses.replace(state, status=Status.FAILED, reason=reason)
        elif result.finished:
            state = dataclasses.replace(state, status=Status.FINISHED, reason="")
        elif poll.stopped or (poll.exit_code == 0 and _has_progress(planned, state)):
            state = dataclasses.replace(state, status=Status.STOPPED)
        else:
            state = self._fail(state, poll)
        self._write(planned.job.name, state)
        self._report(planned, f"{state.status.value}: {state.reason}".removesuffix(": "))

    def _fail(self, state: JobState, poll: Poll) -> JobState:
        failures = state.failures + 1
        is_final = poll.exit_code == _USER_ERROR or failures > self._options.retries
        return dataclasses.replace(
            state,
            status=Status.FAILED if is_final else Status.WAITING,
            failures=failures,
            reason=poll.reason or _describe_exit(poll.exit_code),
        )

    def _write(self, name: str, state: JobState) -> None:
        self._states[name] = state
        self._folder.write_state(name, state)

    def _report(self, planned: PlannedJob, what: str) -> None:
        statuses = [state.status for state in self._states.values()]
        arms = join_names(self._sweep.arm_names(planned.job.name))
        finished = statuses.count(Status.FINISHED)
        self._log(f"[{finished}/{len(statuses)}] {planned.job.name} {what} ({arms})")


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "it ended for an unknown reason"
    if code < 0:
        return f"killed by signal {-code}"
    if code == 0:
        return "exit code 0 before it was finished"
    return f"exit code {code}"


def _has_progress(planned: PlannedJob, state: JobState) -> bool:
    """Returns whether the last attempt of a job saved a later checkpoint than those before it.

    A run that receives SIGTERM saves and exits with 0, for example in the grace period of a
    preemption, of which not all systems report the reason.
    """
    return outcome_lib.read_saved_step(planned) > state.saved_step


def retry_failed(folder: SweepFolder, sweep: ExpandedSweep) -> list[str]:
    """Lets the failed jobs of a sweep start again, and returns their names.

    A job with a non-finite result starts from the beginning. Its old workdir is kept under another
    name.
    """
    failed = {}
    for name, planned in sweep.jobs.items():
        state = folder.read_state(name)
        if state.status is not Status.FAILED:
            continue
        failed[name] = state
        workdir = planned.job.workdir
        if state.reason == outcome_lib.NON_FINITE and os.path.exists(workdir):
            number = sum(1 for _ in workdir.parent.glob(f"{name}.non-finite-*")) + 1
            workdir.rename(workdir.with_name(f"{name}.non-finite-{number}"))
        folder.write_state(name, JobState())
    return list(failed)
