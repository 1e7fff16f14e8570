"""The sections of the page of a run."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import json_file
from invnext_jax.checkpointing import run_metadata, run_record
from invnext_jax.errors import UserError
from invnext_jax.evaluation.pages import charts, report
from invnext_jax.evaluation.pages.reported_run import ReportedRun
from invnext_jax.monitoring import metrics_file, progress
from invnext_jax.monitoring.host_metrics import PREFIX
from invnext_jax.watching.newest_strips import NewestStrips
from invnext_jax.watching.run_status import RunStatus, read_saved_step, read_status, read_versions

# Facts that the status shows.
_ELSEWHERE = ("steps", "speed", "skipped steps", "dropped clips")

# Titles and formats of the metrics that the status shows.
_NUMBERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", charts.format_value),
    "clips_per_second": ("speed", "{:.3g} clips/s".format),
    "tflops_per_device": ("per device", "{:.3g} TFLOP/s".format),
    "mfu": ("MFU", "{:.1%}".format),
    "data_wait": ("waiting for data", "{:.0%}".format),
}
_COUNTS = {"skipped": "skipped steps", "dropped_videos": "dropped clips"}  # shown unless 0

Records = list[dict[str, Any]]


class RunView:
    """Renders the sections of a run; see `live_page.View`.

    Args:
      workdir: workdir of the run, which need not exist yet.
      clips: number of clips to draw for each new checkpoint.
    """

    names = ("status", "charts", "hosts", "clips", "facts")

    def __init__(self, workdir: Path, clips: int):
        self._workdir, self._strips = workdir, NewestStrips(workdir, clips)
        self._version: Any = None  # of the files that were read last
        self._record: dict[str, Any] = {}
        self._records: Records = []
        self._problem = ""

    def render(self) -> dict[str, str]:
        """Renders the sections whose files have changed."""
        # Read before the records: a page with a checkpoint has the records of its steps.
        saved = read_saved_step(self._workdir)
        sections, version = {}, self._read_version(saved)
        if version != self._version:
            self._read()
            self._version = version
            sections |= self._render_records()
        config = self._record.get("config", {})
        status = read_status(self._workdir, self._records, config.get("total_steps"), saved)
        self._strips.update(status.checkpoint)
        numbers = describe_record(self._records, config, status)
        sections["status"] = report.render(
            "watch_status.html", status=status, numbers=numbers, problem=self._problem
        )
        sections["clips"] = self._render_clips()
        return sections

    def _read_version(self, saved: int | None) -> Any:
        """Returns the newest checkpoint, and the sizes and times of the files of the run."""
        files = [self._workdir / name for name in (metrics_file.FILE, "config.json")]
        return saved, read_versions(files)

    def _read(self) -> None:
        """Reads the records and the config. What cannot be read stays as it was."""
        try:
            self._problem = ""
            self._record = read_record(self._workdir)
            self._records = metrics_file.read_numbers(self._workdir)
        except UserError as error:
            self._problem = str(error)

    def _render_records(self) -> dict[str, str]:
        found = charts.make_charts(self._records, salt="watch")
        sections = {
            "charts": report.render("run_charts.html", run={"charts": found}) if found else "",
            "hosts": report.render("watch_hosts.html", hosts=describe_hosts(self._records)),
        }
        if self._record:
            run = ReportedRun(self._workdir, self._record, self._records)
            facts = report.describe_facts(run)
            shown = {name: value for name, value in facts.items() if name not in _ELSEWHERE}
            content = {"facts": shown, "config": run.config_text}
            sections["facts"] = report.render("watch_facts.html", run=content)
        return sections

    def _render_clips(self) -> str:
        strips = self._strips
        text = "The clips of the newest checkpoint are being drawn." if strips.is_drawing else ""
        problem = f"The newest checkpoint cannot be drawn: {strips.problem}"
        if not (strips.clips or text or strips.problem):
            return ""
        return report.render(
            "watch_clips.html",
            clips=strips.clips,
            text=text,
            problem=problem if strips.problem else "",
        )

    def close(self) -> None:
        """Stops drawing clips."""
        self._strips.close()


def read_record(workdir: Path) -> dict[str, Any]:
    """Reads the config of a run and, if it has a checkpoint, the versions that it was trained with.

    Returns:
      A dict as of `run_record.read_run_record`; {} if the run has neither config nor checkpoint.

    Raises:
      UserError: config.json is damaged, or a field that the page shows is.
    """
    try:
        record = run_record.read_run_record(workdir)
    except (UserError, OSError):  # there is no checkpoint, or it was just removed
        record = {"step": 0, "git": None, "versions": {}}
    path = workdir / "config.json"
    if os.path.isfile(path):  # newer than the checkpoint if the run was resumed
        advice = "start the run again"
        config = json_file.read_object(path, advice)
        run_record.check_config(config, str(path))
        record["config"] = run_metadata.upgrade_config(config)
    elif "config" in record:
        run_record.check_config(record["config"], str(workdir))
    return record if "config" in record else {}


def describe_record(
    records: Sequence[Mapping[str, Any]], config: Mapping[str, Any], status: RunStatus
) -> dict[str, str]:
    """Returns the newest numbers of a run by their names, as text."""
    last, found = records[-1] if records else {}, {}
    for name, (title, write) in _NUMBERS.items():
        if last.get(name) is not None:
            found[title] = write(last[name])
    left, speed = config.get("total_steps", 0) - last.get("step", 0), last.get("clips_per_second")
    if status.state == "running" and left > 0 and speed and speed > 0:
        seconds = left * config.get("batch_size", 0) / speed
        if math.isfinite(seconds):
            found["time left"] = progress.format_duration(seconds)
    for name, title in _COUNTS.items():
        if last.get(name):
            found[title] = f"{last[name]:,}"
    if status.checkpoint is not None:
        found["newest checkpoint"] = f"step {status.checkpoint:,}"
    return found


def describe_hosts(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the rows of the newest comparison of the hosts; [] for a single host."""
    last = next((r for r in reversed(records) if any(n.startswith(PREFIX) for n in r)), {})
    names = [m[1] for name in last if (m := re.fullmatch(PREFIX + r"(\w+)/mean", name))]
    return [
        {
            "name": name.replace("_", " "),
            **{
                kind: charts.format_value(value)
                if (value := last.get(f"{PREFIX}{name}/{kind}")) is not None
                else ""
                for kind in ("min", "mean", "max")
            },
            "worst": str(last.get(f"{PREFIX}{name}/worst_host", "")),
        }
        for name in names
    ]
