"""Formats the states of the jobs of a sweep as text for the terminal."""

import dataclasses
import socket
from collections.abc import Mapping

from invnext_jax import regular_file
from invnext_jax.sweeps import outcome
from invnext_jax.sweeps.executors import local_executor
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedJob
from invnext_jax.sweeps.job import Job
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder

LOG_LINES = 5
_LOG_BYTES = 2**14
_MAX_WIDTH = 60  # of the column of states; longer ones shift the rest of their line


def format_status(folder: SweepFolder, sweep: ExpandedSweep) -> str:
    """Returns a line for each job, and the last lines of the logs of failed jobs."""
    states = read_current_states(folder, sweep)
    blocked = find_blocked(sweep.jobs, states)
    texts = {
        name: describe_state(planned, states[name], is_blocked=name in blocked)
        for name, planned in sweep.jobs.items()
    }
    widths = [max(map(len, column), default=0) for column in (texts, texts.values())]
    lines = []
    for name, planned in sweep.jobs.items():
        state = states[name]
        arms = sweep.describe_arms(name)
        lines.append(f"{name:{widths[0]}}  {texts[name]:{min(widths[1], _MAX_WIDTH)}}  {arms}")
        if state.status is Status.FAILED or state.failures:
            lines += [f"    {line}" for line in read_log_tail(planned.job)]
    total = count_states(sweep, states)
    command = "The sweep command runs."
    if not folder.is_locked():
        command = "The sweep command does not run."
        if any(state.is_active for state in states.values()):
            command += " Jobs that it left running may have ended since."
    return "\n".join([*lines, f"{count_noun(len(states), 'job')}: {total}. {command}"])


def read_current_states(folder: SweepFolder, sweep: ExpandedSweep) -> dict[str, JobState]:
    """Reads the states of all jobs, for a reader that does not write them.

    If the sweep command was killed, its last states are still in the files. Jobs of this machine
    that are no longer running therefore get the state that their outputs have.
    """
    states = folder.read_states(sweep)
    # The file system may not show the locks of other hosts.
    if folder.is_locked() or folder.read_host() not in ("", socket.gethostname()):
        return states
    for name, state in states.items():
        planned = sweep.jobs[name]
        system = (state.handle or {}).get("system", sweep.executor)
        is_local = state.is_active and system == local_executor.SYSTEM
        if is_local and not local_executor.is_running(planned.job):
            states[name] = _read_ended(planned, state)
    return states


def _read_ended(planned: PlannedJob, state: JobState) -> JobState:
    result = outcome.read_outcome(planned)
    if not result.finished:
        return dataclasses.replace(state, status=Status.STOPPED)
    status = Status.FAILED if result.reason else Status.FINISHED
    return dataclasses.replace(state, status=status, reason=result.reason)


def count_noun(count: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 job" or "2 jobs"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def count_states(sweep: ExpandedSweep, states: Mapping[str, JobState]) -> str:
    """Returns the number of jobs of each status, such as "1 running, 7 finished, 2 blocked"."""
    blocked = find_blocked(sweep.jobs, states)
    blocked = {name for name in blocked if states[name].status is Status.WAITING}
    statuses = [state.status for name, state in states.items() if name not in blocked]
    counts = [(statuses.count(status), status.value) for status in Status]
    counts.append((len(blocked), "blocked"))
    return ", ".join(f"{count} {name}" for count, name in counts if count)


def describe_state(planned: PlannedJob, state: JobState, *, is_blocked: bool) -> str:
    """Returns the status of a job with its progress or the reason of its failure.

    Args:
      planned: the job.
      state: its state.
      is_blocked: whether a job that it depends on has failed.
    """
    if state.status is Status.FAILED:
        return f"failed: {state.reason}"
    if state.status is Status.WAITING and is_blocked:
        return "blocked by a failed job"
    text = state.status.value
    if state.failures:
        text += f", attempt {state.failures + 1} after {state.reason}"
    if planned.kind is Kind.TRAIN:
        of_total = f"of {planned.total_steps:,}"
        if state.status is Status.RUNNING:
            step = outcome.read_last_record(planned.job.workdir).get("step", 0)
            logged = f"last logged step {step:,} {of_total}" if step else "no step is logged yet"
            text += f", {logged}"
        elif state.status is Status.STOPPED:
            text += f", continues from step {outcome.read_saved_step(planned):,} {of_total}"
    return text


def find_blocked(jobs: Mapping[str, PlannedJob], states: Mapping[str, JobState]) -> set[str]:
    """Returns the jobs that depend, directly or not, on a failed job.

    Args:
      jobs: the jobs by name; dependencies come first.
      states: the states by name.
    """
    blocked: set[str] = set()
    for name, planned in jobs.items():
        if any(
            states[source].status is Status.FAILED or source in blocked
            for source in planned.job.dependencies
        ):
            blocked.add(name)
    return blocked


def read_log_tail(job: Job, lines: int = LOG_LINES) -> list[str]:
    """Returns the last lines of a job's log; [] if there is no log."""
    try:
        text = regular_file.read_tail(job.log, _LOG_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]
