"""The sections of the page of a sweep."""

from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.evaluation.pages import report
from invnext_jax.monitoring import metrics_file
from invnext_jax.sweeps import status_table
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.report import comparison, results, sweep_page
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder
from invnext_jax.watching.run_status import RunStatus, read_versions


class SweepView:
    """Renders the sections of a sweep; see `live_page.View`.

    Args:
      folder: folder of the sweep.
    """

    names = ("status", "tables", "jobs")

    def __init__(self, folder: SweepFolder):
        self._folder, self._problem = folder, ""
        self._version: Any = None  # of the files that were read last

    def render(self) -> dict[str, str]:
        """Renders the sections whose files have changed.

        Raises:
          UserError: the description of the sweep is damaged.
        """
        sweep = self._folder.read_sweep()
        states = status_table.read_current_states(self._folder, sweep)
        sections = {"jobs": self._render_jobs(sweep, states)}
        version = self._read_version(sweep, states)
        if version != self._version:
            self._version, self._problem = version, ""
            try:
                found = results.collect_results(sweep, states)
                tables = comparison.make_tables(found)
                content = sweep_page.describe_sweep(self._folder, found, tables)
                sections["tables"] = report.render("sweep_tables.html", **content)
            except UserError as error:
                self._problem = str(error)
        done = sum(state.status is Status.FINISHED for state in states.values())
        counts = status_table.count_noun(len(states), "job")
        if done < len(states):
            counts += f" ({status_table.count_states(sweep, states)})"
        status = RunStatus(_find_state(self._folder, states), counts, done / max(1, len(states)))
        sections["status"] = report.render(
            "watch_status.html", status=status, numbers={}, problem=self._problem
        )
        return sections

    def _render_jobs(self, sweep: ExpandedSweep, states: dict[str, JobState]) -> str:
        blocked = status_table.find_blocked(sweep.jobs, states)
        jobs = [
            {
                "name": name,
                "text": status_table.describe_state(
                    planned, states[name], is_blocked=name in blocked
                ),
                "failed": states[name].status is Status.FAILED,
                "arms": sweep.describe_arms(name),
            }
            for name, planned in sweep.jobs.items()
        ]
        return report.render("watch_jobs.html", jobs=jobs)

    def _read_version(self, sweep: ExpandedSweep, states: dict[str, JobState]) -> Any:
        """Returns the states of the jobs, and the sizes and times of their metrics."""
        workdirs = [planned.job.workdir for planned in sweep.jobs.values()]
        return states, read_versions(workdir / metrics_file.FILE for workdir in workdirs)

    def close(self) -> None:
        """Does nothing."""


def _find_state(folder: SweepFolder, states: dict[str, JobState]) -> str:
    """Returns the state of the whole sweep."""
    statuses = [state.status for state in states.values()]
    if folder.is_locked() or any(state.is_active for state in states.values()):
        return "running"
    if all(status is Status.FINISHED for status in statuses):
        return "finished"
    if Status.FAILED in statuses:
        return "failed"
    return "not started" if set(statuses) == {Status.WAITING} else "stopped"
