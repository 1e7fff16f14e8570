"""Writes a self-contained web page with the tables, curves and clips of runs and evaluations."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from absl import logging

from invnext_jax import atomic_file, regular_file, sanitize
from invnext_jax.checkpointing import reader, run_record
from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file, tables
from invnext_jax.evaluation.pages import charts, replaced_file, run_clips
from invnext_jax.evaluation.pages.reported_run import ReportedRun, name_folders
from invnext_jax.monitoring import metrics_file

MAX_RECIPE_BYTES = 2**20


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    clips: int = 3,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Writes a web page about runs and evaluations.

    Args:
      folders: workdirs of pretraining runs and of evaluations, in any order.
      out: HTML file to write.
      clips: number of example clips, taken from the start of the manifest.
      links: names and relative addresses of other pages.

    Raises:
      UserError: a folder is neither a run nor an evaluation, or `out` is another file, see
        `replaced_file`.
    """
    if not folders and not links:
        raise UserError("specify the workdirs of the runs and evaluations to report on")
    replaced_file.check_replaceable(out)
    runs, results = [], read_evaluations(folders)
    for folder in map(Path, folders):
        if os.path.isfile(folder / results_file.RESULTS):
            continue
        if os.path.isdir(folder / "checkpoints"):
            record = run_record.read_run_record(folder)
            runs.append(ReportedRun(folder, record, metrics_file.read_numbers(folder)))
        else:
            raise UserError(
                f"{folder} is neither a run nor an evaluation: it has no checkpoint or results"
            )
    names = name_folders([run.folder for run in runs])
    page = render(
        "report.html",
        runs=[describe_run(run, names[i], i) for i, run in enumerate(runs)],
        results=tables.join_results(results),
        clips=_find_clips(runs, results, clips),
        links=links or {},
    )
    atomic_file.write_text(out, page)
    return Path(out)


def _find_clips(runs, results, count: int) -> dict[str, Any] | None:
    """Returns the clips of a page, or a note why there are none; None if they are not wanted."""
    if not runs or not count:
        return None
    try:
        return run_clips.show_clips(runs, results, count)
    except UserError as error:
        logging.warning("the page has no clips: %s", error)
        return {"clips": [], "notes": [f"No clips: {error}."]}


def read_evaluations(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Returns the results of those folders that are workdirs of evaluations, with their paths."""
    paths = [path for path in map(Path, folders) if os.path.isfile(path / results_file.RESULTS)]
    return [{**results_file.read_results(p), "workdir": os.path.realpath(p)} for p in paths]


def render(template: str, **content: Any) -> str:
    """Renders a template of this package. Control characters in names are escaped."""
    loader = jinja2.PackageLoader("invnext_jax.evaluation.pages", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return sanitize.escape_controls(environment.get_template(template).render(**content))


def describe_run(run: ReportedRun, name: str, number: int) -> dict[str, Any]:
    """Returns the contents of a run's section: name, facts, charts and the complete config."""
    return {
        "title": run.title,
        "folder": name,
        "facts": describe_facts(run),
        "charts": charts.make_charts(run.records, salt=f"{run.folder}-{number}"),
        "config": run.config_text,
    }


def describe_facts(run: ReportedRun) -> dict[str, Any]:
    """Returns the settings and the progress of a run by their names."""
    config, last = run.config, run.records[-1] if run.records else {}
    e, data = config.encoder, config.data
    side = data.size // e.patch
    speeds = [r["clips_per_second"] for r in run.records if r.get("clips_per_second")]
    facts = {
        "variant": config.variant,
        "steps": f"{run.record['step']:,} of {config.total_steps:,}",
        "aborted": reader.find_abort_reason(run.record),
        "epochs": _read_epochs(run.folder),
        "learning rate": f"{config.optimizer.learning_rate:.3g}, at the end "
        f"{config.optimizer.min_learning_rate:.3g}; {config.optimizer.warmup_steps:,} steps of "
        "warm-up",
        "batch": f"{config.batch_size} clips",
        "clips": f"{data.frames} frames of {data.size} px, {side} x {side} patches of {e.patch} px",
        "encoder": f"{e.depth} blocks of width {e.width}, {e.heads} heads",
        "predictor": run.predictor,
        "mask": config.mask.kind.replace("_", "-"),
        "seed": config.seed,
        "speed": f"{np.median(speeds):.0f} clips/s" if speeds else "",
        "skipped steps": last.get("skipped", ""),
        "dropped clips": last.get("dropped_videos", ""),
        "clips of short videos": last.get("short_clips", ""),
        "code": _name_commit(run.record["git"]),
        "versions": ", ".join(f"{k} {v}" for k, v in run.record["versions"].items()),
    }
    return {name: value for name, value in facts.items() if value != ""}


def _name_commit(git: str | None) -> str:
    """Returns the start of a git hash with a "+" for local changes; "" if it is unknown (None)."""
    return "" if git is None else git[:10] + "+" * git.endswith("+") or "no git"


def _read_epochs(workdir: Path) -> str:
    """Returns the epochs in a run's recipe.json; "" for runs of versions that did not write it."""
    try:
        recipe = json.loads(regular_file.read_bytes(workdir / "recipe.json", MAX_RECIPE_BYTES))
        return f"{recipe['epochs']:.4g} of {recipe['videos']:,} videos"
    except regular_file.DAMAGE:
        return ""
