"""Writes a self-contained web page with the tables, curves and clips of runs and evaluations."""

import dataclasses
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import ml_collections
import numpy as np
from absl import logging

from invnext_jax import atomic_file, regular_file
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained, results_file, tables, visualization
from invnext_jax.evaluation.pages import charts, clip_strips
from invnext_jax.monitoring import metrics_file
from invnext_jax.stages import registry

MAX_RECIPE_BYTES = 2**20
MAX_CAPTIONS_BYTES = 2**30
MAX_LINE_BYTES = 2**22  # maximum size of the line of a caption


@dataclasses.dataclass
class ReportedRun:
    """A pretraining run in a report.

    Attributes:
      folder: workdir of the run.
      record: metadata of the newest checkpoint; see `pretrained.read_run_record`.
      records: logged metrics, one dict per logged step.
    """

    folder: Path
    record: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The resolved config of the run."""
        return ml_collections.ConfigDict(self.record["config"])

    @property
    def title(self) -> str:
        """The name of the run's stage."""
        return registry.STAGES[self.record["config"]["stage"]].title

    @property
    def config_text(self) -> str:
        """The config as indented JSON."""
        return json.dumps(self.record["config"], indent=1)


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
      UserError: a folder is neither a run nor an evaluation.
    """
    if not folders and not links:
        raise UserError("specify the workdirs of the runs and evaluations to report on")
    runs, results = [], read_evaluations(folders)
    for folder in map(Path, folders):
        if (folder / results_file.RESULTS).is_file():
            continue
        if (folder / "checkpoints").is_dir():
            record = pretrained.read_run_record(folder)
            runs.append(ReportedRun(folder, record, metrics_file.read_numbers(folder)))
        else:
            raise UserError(
                f"{folder} is neither a run nor an evaluation: it has no checkpoint or results"
            )
    page = render(
        "report.html",
        runs=[describe_run(run, i) for i, run in enumerate(runs)],
        results=tables.join_results(results),
        clips=show_clips(runs, results, clips) if runs and clips else None,
        links=links or {},
    )
    atomic_file.write_text(out, page)
    return Path(out)


def read_evaluations(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Returns the results of those folders that are workdirs of evaluations, with their paths."""
    paths = [path for path in map(Path, folders) if (path / results_file.RESULTS).is_file()]
    return [{**results_file.read_results(path), "workdir": str(path.resolve())} for path in paths]


def render(template: str, **content: Any) -> str:
    """Renders a template of this package."""
    loader = jinja2.PackageLoader("invnext_jax.evaluation.pages", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**content)


def describe_run(run: ReportedRun, number: int) -> dict[str, Any]:
    """Returns the contents of a run's section: facts, charts and the complete config."""
    return {
        "title": run.title,
        "folder": run.folder.name,
        "facts": describe_facts(run),
        "charts": charts.make_charts(run.records, salt=f"{run.folder}-{number}"),
        "config": run.config_text,
    }


def describe_facts(run: ReportedRun) -> dict[str, Any]:
    """Returns the settings and the progress of a run by their names."""
    config, last = run.config, run.records[-1] if run.records else {}
    e, data = config.encoder, config.data
    side = e.size // e.patch
    speeds = [r["clips_per_second"] for r in run.records if r.get("clips_per_second")]
    facts = {
        "variant": config.variant,
        "steps": f"{run.record['step']:,} of {config.total_steps:,}",
        "epochs": _read_epochs(run.folder),
        "learning rate": f"{config.optimizer.learning_rate:.3g}, at the end "
        f"{config.optimizer.min_learning_rate:.3g}; {config.optimizer.warmup_steps:,} steps of "
        "warm-up",
        "batch": f"{config.batch_size} clips",
        "clips": f"{data.frames} frames of {data.size} px, {side} x {side} patches of {e.patch} px",
        "encoder": f"{e.depth} blocks of width {e.width}, {e.heads} heads",
        "predictor": f"{config.predictor.depth} {config.predictor.kind} layers",
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


def show_clips(runs: Sequence[ReportedRun], results: Sequence[dict], count: int) -> dict[str, Any]:
    """Returns image strips of the first clips of the held-out manifest.

    Without an evaluation, the clips are from the training manifest of the first run. Results may
    come from an untrusted source, so only their local manifests of local videos are read.
    """
    held_out = [result["run"].get("config", {}).get("val_manifest") for result in results]
    held_out = [name for name in held_out if clip_strips.has_local_videos(name)]
    manifest = held_out[0] if held_out else runs[0].config.data.manifest
    rows: list[list[dict[str, str]]] = [[] for _ in range(count)]
    video_bthwc, index_b = _read_clips(runs[0].config, manifest, count)

    def add(title, caption, videos):
        for row, video_thwc in zip(rows, videos, strict=False):
            uri = visualization.to_data_uri(np.asarray(video_thwc))
            row.append({"title": title, "caption": caption, "uri": uri})

    add("Input", "The frames that the encoder receives.", video_bthwc)
    notes, first = [], runs[0]
    untrained = pretrained.init_encoder(first.config, seed=first.config.seed)
    maps = [("random initialization", first.config, untrained, video_bthwc)]
    for run in runs:
        params, config = pretrained.load_params(run.folder)
        clips = _read_clips(config, manifest, count)[0]
        try:
            for title, caption, videos in _stage_strips(config, params, clips):
                add(title, caption, videos)
        except UserError as error:
            notes.append(f"{run.title}: no masks or reconstructions, because {error}.")
            logging.warning("%s", notes[-1])
        maps.append((run.title, config, params["encoder"], clips))
    for title, config, params, clips in maps:
        tokens = visualization.grid_tokens(config, params, clips)
        colors = [visualization.color_features(x, config.data.size) for x in tokens]
        add(f"Features, {title}", FEATURES_CAPTION, colors)
    names = _name_clips(manifest, index_b)
    if names is None:
        names = [f"Clip {i}" for i in index_b]
        notes.append("No captions: there is no caption file next to the manifest.")
    title = ", ".join(Path(name).name for name in manifest_lib.split_names(manifest))
    shown = [{"name": n, "strips": row} for n, row in zip(names, rows, strict=False) if row]
    return {"clips": shown, "notes": notes, "manifest": title, "held": bool(held_out)}


FEATURES_CAPTION = (
    "The first three principal components of this clip's tokens as red, green and blue. Similar "
    "colors within a row mean similar features; colors of different rows are not comparable."
)


def _stage_strips(config: Any, params: Any, video_bthwc: np.ndarray):
    """Yields (title, caption, videos) for each strip of a stage; see `Stage.visualize`."""
    stage = registry.find_stage(config)
    for strip in stage.visualize(config, params, video_bthwc):
        draw = visualization.hide_patches if strip.hides_masked else visualization.outline_patches
        videos = list(map(draw, strip.video_bthwc, strip.visible_btyx))
        yield f"{stage.title}: {strip.title}", strip.caption, videos


def _read_clips(config: Any, manifest: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first readable clips as in evaluation: uint8 [b t h w c] and row numbers [b]."""
    data = ml_collections.ConfigDict(config.data.to_dict())
    data.workers = 0  # starting processes takes longer than reading a few clips
    batches = pipeline.make_eval_dataset(data, manifest=manifest, batch_size=count)
    batch = next(itertools.islice(batches, 1))
    real_b = batch["index"] >= 0
    return batch["video"][real_b], batch["index"][real_b]


def _name_clips(manifest: str, index_b: np.ndarray) -> list[str] | None:
    """Reads the ground-truth captions of the synthetic world; returns None if there are none."""
    path = Path(manifest)
    path = path.with_name(f"{path.stem}.captions.jsonl")
    if not path.is_file():
        return None
    try:
        lines = _read_lines(path, set(index_b.tolist()))
        return [f"Clip {i}: {json.loads(lines[i])['caption']}" for i in index_b.tolist()]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        logging.warning("%s is damaged and skipped: %r", path, error)
        return None


def _read_lines(path: Path, numbers: Collection[int]) -> dict[int, bytes]:
    """Returns the lines with these numbers, from 0, without reading the whole file."""
    found = {}
    with regular_file.open_binary(path, MAX_CAPTIONS_BYTES) as file:
        for number in range(max(numbers, default=-1) + 1):
            line = file.readline(MAX_LINE_BYTES)
            if len(line) == MAX_LINE_BYTES:
                raise ValueError(f"line {number + 1} has {MAX_LINE_BYTES} bytes or more")
            if number in numbers:
                found[number] = line
    return found
