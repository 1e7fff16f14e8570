"""Strips of small frames of the videos of an evaluation, read again from its data.

The strips are data URIs, so that a page with them is self-contained.

Shape key: t frames, h w pixels, c channels.
"""

import base64
import functools
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from PIL import Image

from invnext_jax import regular_file
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, video_io
from invnext_jax.data.access_rules import DEFAULT_RULES
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluation_data
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.pages import video_labels
from invnext_jax.evaluation.pages.reported_run import ReportedRun
from invnext_jax.evaluation.truth.truth import BadTruth

FRAMES, SIDE, GAP, QUALITY = 6, 64, 2, 80
# Errors of videos that are missing or damaged, and of configs of older versions or unknown origin.
_ERRORS = (UserError, AttributeError, *regular_file.DAMAGE)


def read_strips(
    results: Mapping[str, Any],
    split: str,
    rows: Iterable[int],
    row: Mapping[str, Any] | None = None,
) -> dict[int, str]:
    """Reads the strips of some videos. Videos that cannot be read are left out.

    If a video of the manifest was replaced after the evaluation, all of them are left out. Results
    may come from an untrusted source, so manifests with remote videos are not shown, and the
    protocols that the results allow are ignored.

    Args:
      results: results of an evaluation.
      split: "train" or "val".
      rows: numbers of videos, as in the files of scores or neighbors.
      row: row of the results whose scores have these numbers. If its evaluator reads a data set
        without manifests, the numbers are those of its scenes or videos.
    """
    rows = sorted(set(map(int, rows)))
    if not rows:
        return {}
    try:
        config = ml_collections.FrozenConfigDict(results["run"]["config"])
        evaluator = registry.EVALUATORS.get(row["evaluator"]) if row else None
        if evaluator is None or registry.needs_manifests(evaluator, config):
            manifest = video_labels.open_manifest(results, split)
        elif video_labels.find_section(results["run"]["config"], row) is not None:
            manifest = video_labels.open_manifest(results, split, row)
        else:
            return _read_from_truth(config, evaluator, split, rows)
        if manifest is None:
            return {}
        rows = _choose_files(manifest, rows)
        _check_videos(results, split, row, manifest, config)
        return _read_from_manifest(manifest, config, rows) if rows else {}
    except _ERRORS as error:
        logging.warning("the videos of %s are not shown: %s", results.get("checkpoint"), error)
        return {}


def read_local(names: Any) -> Manifest | None:
    """Reads local manifests of local videos; returns None if one of them is not local."""
    try:
        return _open_local(names)
    except (UserError, OSError, ValueError):
        return None


def _open_local(names: Any) -> Manifest:
    """Reads local manifests of local videos.

    Raises:
      UserError: a manifest or a video is not a local file or a rendered world.
    """
    if not video_labels.is_local(names):
        raise UserError(f"the manifest {names!s:.200} is not a local file, so no clips are drawn")
    manifest = manifest_lib.read_manifest(names, DEFAULT_RULES)
    _choose_files(manifest, [])
    return manifest


def open_manifest_of_run(run: ReportedRun) -> Manifest:
    """Reads the manifest of a run that may come from an unknown source.

    The checkpoint has the hash of the manifest. It is compared, because a forged config could name
    any manifest of this machine. A manifest in the workdir is part of the run, so it may list
    only files below its folder.

    Raises:
      UserError: the manifest is not a local file or has changed, or it lists a file that it must
        not list.
    """
    names = run.record["config"]["data"]["manifest"]
    manifest = _open_local(names)
    if manifest_lib.hash_manifests(names) != run.record.get("manifest_sha256"):
        raise UserError(f"{names} is not the manifest with which {run.folder} was trained")
    workdir = Path(os.path.realpath(run.folder))
    for name in manifest_lib.split_names(names):
        folder = Path(os.path.realpath(name)).parent
        if not video_io.is_world(name) and folder.is_relative_to(workdir):
            rows = manifest_lib.read_manifest(name, DEFAULT_RULES).paths
            for path in (path for path in rows if not video_io.is_world(path)):
                if not Path(os.path.realpath(path)).is_relative_to(folder):
                    raise UserError(f"{name} came with the run, but lists {path} outside of it")
    return manifest


def _choose_files(manifest: Manifest, rows: list[int]) -> list[int]:
    """Returns those rows of a manifest that are rendered clips or regular local files.

    Raises:
      UserError: a row of the manifest refers to a remote file.
    """
    paths = manifest.paths
    if remote := next(filter(video_io.is_remote, paths), None):
        raise UserError(f"{manifest.file} refers to {remote}, which is not a local file")
    rows = [row for row in rows if 0 <= row < len(paths)]
    return [r for r in rows if video_io.is_world(paths[r]) or os.path.isfile(paths[r])]


def _check_videos(results, split: str, row, manifest: Manifest, config) -> None:
    """Checks that the videos are those of the evaluation, if its results identify them.

    Raises:
      UserError: a video was replaced.
    """
    expected = results.get("videos", {}).get(split)
    digest = results["manifests"].get(split)
    if row is not None and video_labels.find_section(results["run"]["config"], row) is not None:
        expected, digest = row.get("videos_digest"), row.get("videos_key")
    if not expected:
        return
    if hash_current_videos(manifest.file, digest, config.data.clip_seconds) != expected:
        raise UserError(f"videos of {manifest.file} were replaced after the evaluation")


@functools.cache
def hash_current_videos(names: str, digest: str, seconds: float) -> str:
    """Returns the hash of the videos of manifests, see `evaluation_data.hash_videos`.

    The result is cached. Call `clear_caches` to read replaced videos again.

    Args:
      names: names of the manifests.
      digest: hash of the manifests, see `video_labels.read_unchanged`.
      seconds: time limit, see `video_digests.digest_files`.
    """
    manifest = video_labels.read_unchanged(names, digest)
    return evaluation_data.hash_videos(manifest, DEFAULT_RULES, seconds)


def clear_caches() -> None:
    """Clears the cached manifests and hashes of videos, which may have been replaced."""
    hash_current_videos.cache_clear()
    video_labels.read_unchanged.cache_clear()


def _read_from_manifest(manifest: Manifest, config, rows: list[int]) -> dict[int, str]:
    found = {}
    data = ml_collections.ConfigDict(config.data.to_dict())
    data.protocols, data.other_hosts = DEFAULT_RULES.protocols, DEFAULT_RULES.other_hosts
    data.workers = 0  # starting processes takes longer than reading a few clips
    for batch in pipeline.make_eval_dataset(data, manifest=manifest, batch_size=1, rows=rows):
        for video_thwc, row in zip(batch["video"], batch["index"], strict=True):
            if row >= 0:
                found[int(row)] = encode_strip(video_thwc)
    return found


def _read_from_truth(config, evaluator: Any, split: str, videos: list[int]) -> dict[int, str]:
    settings, found = config[evaluator.options[0]], {}
    if video_io.is_remote(settings.root):
        raise UserError(f"{settings.root} is not a local folder")
    truth = truth_source.open_truth(settings, split, config)
    first = dict(zip(truth.videos[::-1].tolist(), range(len(truth))[::-1], strict=True))
    for video in videos:
        try:
            found[video] = encode_strip(truth.load(first[video])["video"])
        except BadTruth as error:
            logging.warning("a video of %s is not shown: %s", truth.name, error)
    return found


def encode_strip(video_thwc: np.ndarray) -> str:
    """Encodes evenly spaced frames of a clip side by side as a JPEG data URI.

    Frames that are larger than `SIDE` pixels are shrunk.
    """
    t, h, w, _ = video_thwc.shape
    frames_thwc = video_thwc[np.linspace(0, t - 1, min(t, FRAMES)).round().astype(int)]
    scale = min(1.0, SIDE / h)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    strip = Image.new("RGB", (len(frames_thwc) * (size[0] + GAP) - GAP, size[1]), "white")
    for number, frame_hwc in enumerate(frames_thwc):
        frame = Image.fromarray(frame_hwc).resize(size, Image.Resampling.BOX)
        strip.paste(frame, (number * (size[0] + GAP), 0))
    out = io.BytesIO()
    strip.save(out, format="jpeg", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
