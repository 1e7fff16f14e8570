"""Formats the states of the jobs of a sweep as text for the terminal."""

from collections.abc import Iterable, Mapping

from invnext_jax import regular_file
from invnext_jax.sweeps import outcome
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedJob
from invnext_jax.sweeps.job import Job
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder

LOG_LINES = 5
_LOG_BYTES = 2**14


def format_status(folder: SweepFolder, sweep: ExpandedSweep) -> str:
    """Returns a line for each job, and the last lines of the logs of failed jobs."""
    states = folder.read_states(sweep)
    width = max(map(len, sweep.jobs))
    lines = []
    for name, planned in sweep.jobs.items():
        state = states[name]
        arms = sweep.arm_names(name)
        text = describe_state(planned, sweep.jobs, states)
        lines.append(f"{name:{width}}  {text:30}  {'; '.join(arms)}")
        if state.status is Status.FAILED or state.failures:
            lines += [f"    {line}" for line in read_log_tail(planned.job)]
    total = count_states(states.values())
    command = "runs" if folder.is_locked() else "does not run"
    return "\n".join([*lines, f"{len(states)} jobs: {total}. The sweep command {command}."])


def count_states(states: Iterable[JobState]) -> str:
    """Returns the number of jobs of each status, such as "1 running, 7 finished"."""
    statuses = [state.status for state in states]
    counts = [(statuses.count(status), status.value) for status in Status]
    return ", ".join(f"{count} {name}" for count, name in counts if count)


def describe_state(
    planned: PlannedJob, jobs: Mapping[str, PlannedJob], states: Mapping[str, JobState]
) -> str:
    """Returns the status of a job with its progress or the reason of its failure."""
    state = states[planned.job.name]
    if state.status is Status.FAILED:
        return f"failed: {state.reason}"
    if state.status is Status.WAITING and is_blocked(planned, jobs, states):
        return "blocked by a failed job"
    text = state.status.value
    if state.failures:
        text += f", attempt {state.failures + 1} after {state.reason}"
    if state.status in (Status.RUNNING, Status.STOPPED) and planned.kind is Kind.TRAIN:
        step = outcome.read_last_record(planned.job.workdir).get("step", 0)
        text += f", step {step:,} of {planned.total_steps:,}"
    return text


def is_blocked(
    planned: PlannedJob, jobs: Mapping[str, PlannedJob], states: Mapping[str, JobState]
) -> bool:
    """Returns whether a job that the job depends on, directly or not, has failed."""
    return any(
        states[name].status is Status.FAILED or is_blocked(jobs[name], jobs, states)
        for name in planned.job.dependencies
    )


def read_log_tail(job: Job, lines: int = LOG_LINES) -> list[str]:
    """Returns the last lines of a job's log; [] if there is no log."""
    try:
        text = regular_file.read_tail(job.log, _LOG_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]
