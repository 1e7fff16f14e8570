"""Clips of runs on a page: their frames, masks, reconstructions and features.

Shape key: b clips, t frames, h w pixels, c channels, y x rows and columns of patches.
"""

import itertools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from invnext_jax import regular_file
from invnext_jax.checkpointing import frozen_hashes
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError, summarize_error
from invnext_jax.evaluation import pretrained, results_file, visualization
from invnext_jax.evaluation.pages import clip_strips
from invnext_jax.evaluation.pages.reported_run import ReportedRun, make_titles
from invnext_jax.stages import image_teacher, registry
from invnext_jax.weights.model_sizes import check_sizes

MAX_PATCHES = 2**15  # of all clips; a tiny model needs 10 GB of memory for so many
MAX_CAPTIONS_BYTES = 2**30
MAX_LINE_BYTES = 2**22  # maximum size of the line of a caption


def show_clips(
    runs: Sequence[ReportedRun],
    results: Sequence[dict],
    count: int,
    rules: AccessRules | None = None,
) -> dict[str, Any]:
    """Returns image strips of the first clips of the held-out manifest.

    Without an evaluation, the clips are from the training manifest of the first run. Results and
    runs may come from an untrusted source, so only local manifests of local videos are read.

    Args:
      runs: the runs; their clips have the sizes of their configs.
      results: results of evaluations.
      count: number of clips.
      rules: rules for the manifest of a run that the caller trusts. None: the run is not trusted,
        see `clip_strips.open_manifest_of_run`.

    Raises:
      UserError: the manifest, its videos or a checkpoint cannot be read.
    """
    for run in runs:
        _check_sizes(run.record["config"], str(run.folder), count)
    try:
        return _draw_clips(runs, results, count, rules)
    except UserError:
        raise
    except (AttributeError, *regular_file.DAMAGE) as error:  # fields of a config that is forged
        raise UserError(
            f"the clips cannot be drawn ({summarize_error(error)}): use --clips=0"
        ) from error


def _check_sizes(config: Mapping[str, Any], source: str, count: int) -> None:
    """Checks the sizes of clips and models before memory is allocated for them."""
    check_sizes(config, source)
    data = config["data"]
    pixels = data["frames"] * max(data["size"], data["short_side"]) ** 2
    if pixels > results_file.MAX_PIXELS:
        raise UserError(
            f"{source}: clips of {pixels:,} pixels are not drawn: the limit is "
            f"{results_file.MAX_PIXELS:,}"
        )
    patches = count * data["frames"] * (data["size"] // config["encoder"]["patch"]) ** 2
    if patches > MAX_PATCHES:
        raise UserError(
            f"{source}: {count} clips of {patches // count:,} patches are not drawn: the limit is "
            f"{MAX_PATCHES:,} patches in total; set a smaller --clips"
        )


def _draw_clips(runs, results, count: int, rules: AccessRules | None) -> dict[str, Any]:
    held_out = (result["run"].get("config", {}).get("val_manifest") for result in results)
    found = ((name, clip_strips.read_local(name)) for name in held_out)
    names, manifest = next((pair for pair in found if pair[1] is not None), (None, None))
    is_held_out = manifest is not None
    if not is_held_out:
        names = runs[0].config.data.manifest
        if rules is None:
            manifest = clip_strips.open_manifest_of_run(runs[0])
        else:
            manifest = manifest_lib.read_manifest(names, rules)
    rows: list[list[dict[str, str]]] = [[] for _ in range(count)]
    video_bthwc, index_b = _read_clips(runs[0].config, manifest, count)

    def add(title, caption, videos):
        for row, video_thwc in zip(rows, videos, strict=False):
            uri = visualization.to_data_uri(np.asarray(video_thwc))
            row.append({"title": title, "caption": caption, "uri": uri})

    add("Input", "The frames that the encoder receives.", video_bthwc)
    notes, first, maps = [], runs[0], []
    for run, title in zip(runs, make_titles(runs), strict=True):
        params, config = pretrained.load_params(run.folder)
        # It may be from an older checkpoint, because the newest one is damaged.
        _check_sizes(config.to_dict(), str(run.folder), count)
        clips = _read_clips(config, manifest, count)[0]
        try:
            is_trusted = rules is not None
            for name, caption, videos in _stage_strips(run, config, params, clips, is_trusted):
                add(f"{title}: {name}", caption, videos)
        except UserError as error:
            notes.append(f"{title}: no masks or reconstructions, because {error}.")
            logging.warning("%s", notes[-1])
        maps.append((title, config, params["encoder"], clips))
    # The checkpoint is read first: its parameters are compared with the sizes in the config.
    untrained = pretrained.init_encoder(first.config, seed=first.config.seed)
    maps.insert(0, ("random initialization", first.config, untrained, video_bthwc))
    for title, config, params, clips in maps:
        tokens = visualization.grid_tokens(config, params, clips)
        colors = [visualization.color_features(x, config.data.size) for x in tokens]
        add(f"Features, {title}", FEATURES_CAPTION, colors)
    captions = _name_clips(names, {i: manifest.paths[i] for i in index_b.tolist()})
    if captions is None:
        captions = [f"Clip {i}" for i in index_b]
        notes.append("No captions: no file next to the manifest has one line for each clip.")
    title = ", ".join(Path(name).name for name in manifest_lib.split_names(names))
    shown = [{"name": n, "strips": row} for n, row in zip(captions, rows, strict=False) if row]
    return {"clips": shown, "notes": notes, "manifest": title, "held": is_held_out}


FEATURES_CAPTION = (
    "The first three principal components of this clip's tokens as red, green and blue. Similar "
    "colors within a row mean similar features; colors of different rows are not comparable."
)


def _check_teacher(run: ReportedRun, config: Any) -> None:
    """Checks that the image teacher that draws masks is that of a run of unknown origin.

    The checkpoint has the hash of its parameters. It is compared, because a forged config could
    name any weights of this machine. The page does not show why they cannot be read.

    Raises:
      UserError: it is another one, or cannot be read.
    """
    if not registry.find_stage(config).needs_teacher(config):
        return
    expected, found = run.record.get("frozen_sha256"), None
    try:
        teacher = {"teacher": image_teacher.read_teacher(config)}
        found = frozen_hashes.hash_groups(teacher)["teacher"]
    except UserError as error:
        logging.warning("the image teacher of %s cannot be read: %s", run.folder, error)
    if found is None or not isinstance(expected, dict) or found != expected.get("teacher"):
        raise UserError(
            f"config.teacher.weights={config.teacher.weights} cannot be read, or is not the image "
            "teacher with which the run was trained"
        )


def _stage_strips(run: ReportedRun, config: Any, params: Any, video_bthwc, is_trusted: bool):
    """Yields (title, caption, videos) for each strip of a stage; see `Stage.visualize`."""
    if not is_trusted:
        _check_teacher(run, config)
    for strip in registry.find_stage(config).visualize(config, params, video_bthwc):
        draw = visualization.hide_patches if strip.hides_masked else visualization.outline_patches
        videos = list(map(draw, strip.video_bthwc, strip.visible_btyx))
        yield strip.title, strip.caption, videos


def _read_clips(config: Any, manifest: Manifest, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first readable clips as in evaluation: uint8 [b t h w c] and row numbers [b]."""
    data = ml_collections.ConfigDict(config.data.to_dict())
    data.workers = 0  # starting processes takes longer than reading a few clips
    batches = pipeline.make_eval_dataset(data, manifest=manifest, batch_size=count)
    batch = next(itertools.islice(batches, 1))
    real_b = batch["index"] >= 0
    return batch["video"][real_b], batch["index"][real_b]


def _name_clips(manifest: str, paths: Mapping[int, str]) -> list[str] | None:
    """Reads the captions next to a manifest, if there is one for each row, as in a written world.

    Args:
      manifest: Name of the manifest.
      paths: Path of each clip by its row.

    Returns:
      A caption of each clip; None if there are none, or a line describes another video.
    """
    path = Path(manifest)
    path = path.with_name(f"{path.stem}.captions.jsonl")
    if not os.path.isfile(path):
        return None
    try:
        lines = _read_lines(path, paths)
        entries = {row: json.loads(lines[row]) for row in paths}
        for row, entry in entries.items():
            if not f"/{paths[row]}".endswith(f"/{entry['video']}"):
                raise ValueError(f"line {row + 1} describes another video than the manifest")
        return [f"Clip {row}: {entry['caption']}" for row, entry in entries.items()]
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
