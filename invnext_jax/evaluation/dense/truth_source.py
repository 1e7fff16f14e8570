"""Opens the ground truth of a data set by the name in a config."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from invnext_jax.checkpointing import video_digests
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.clips import LoadClip
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import world
from invnext_jax.evaluation.truth.box_tracks import BoxTracks
from invnext_jax.evaluation.truth.depth_folders import Kitti, ScanNet
from invnext_jax.evaluation.truth.joints import JhmdbJoints
from invnext_jax.evaluation.truth.masks import DavisMasks
from invnext_jax.evaluation.truth.track_windows import WindowRules
from invnext_jax.evaluation.truth.truth import Truth
from invnext_jax.evaluation.truth.world import WorldTruth
from invnext_jax.json_file import hash_json

# Options of a section on which the ground truth depends, besides those of the clips.
OPTIONS = ("data", "root", "stride", "fps")
BOXES = "boxes"
SPLITS = ("train", "val")
WORLD = "world"  # ground truth of the two manifests; other data sets are in the folder `root`


def check_source(settings: Any, name: str, choices: tuple[str, ...]) -> None:
    """Checks the fields `data` and `root` of a section.

    Args:
      settings: the section.
      name: name of the section, for error messages.
      choices: allowed values of `data`.

    Raises:
      UserError: the data set is unknown, or needs a folder that is not set.
    """
    if settings.data not in choices:
        raise UserError(f"{name}.data={settings.data!r} must be one of {choices}")
    if settings.data != WORLD and not settings.root:
        raise UserError(f"{name}.root is empty: set it to the folder of {settings.data}")


def hash_files(settings: Any, config: Any, splits: Sequence[str] = SPLITS) -> str:
    """Returns a hash of the local files of the ground truth; "" if there are none.

    Folders of images have too many files. Of them, only the lists of videos and the numbers of
    their clips are hashed, not the images. If the ground truth cannot be opened, the hash is "".

    Args:
      settings: see `open_truth`.
      config: see `open_truth`.
      splits: splits of which the ground truth is used.
    """
    if settings.data == WORLD:
        return hash_world(config)
    if settings.data == BOXES:
        paths = [_find_boxes(settings.root, split) for split in splits]
        return _hash_paths(paths, config.data.clip_seconds)
    try:
        truths = [open_truth(settings, split, config) for split in splits]
    except UserError:
        return ""
    return hash_json([[list(t.video_names), np.bincount(t.videos).tolist()] for t in truths])


def hash_world(config: Any) -> str:
    """Returns a hash of the ground truth of the written worlds in the manifests of a config."""
    names = [name for s in SPLITS for name in manifest_lib.split_names(config[f"{s}_manifest"])]
    rules = AccessRules.from_config(config.data)
    paths = []
    for name in filter(os.path.isfile, names):
        manifest = manifest_lib.read_manifest([name], rules)
        paths += [str(world.find_file(Path(p))) for p in video_digests.list_files(manifest)]
    return _hash_paths(paths, config.data.clip_seconds)


def _hash_paths(paths: Sequence[str], seconds: float) -> str:
    """Returns a hash of files: of their sizes, and of the first and last 64 KiB of each."""
    found = {path: os.stat(path) for path in paths if os.path.isfile(path)}
    versions = tuple((path, s.st_size, s.st_mtime_ns) for path, s in found.items())
    return _hash_versions(versions, seconds) if versions else ""


@functools.lru_cache(maxsize=4)  # the evaluators of an evaluation have the same files
def _hash_versions(versions: Sequence[tuple[str, int, int]], seconds: float) -> str:
    return hash_json(list(video_digests.digest_files([path for path, *_ in versions], seconds)))


def _find_boxes(root: str, split: str) -> str:
    """Returns the path of the boxes of a split."""
    return f"{root}/{split}/tracks.jsonl"


def open_truth(settings: Any, split: str, config: Any) -> Truth:
    """Opens the ground truth of a split.

    Args:
      settings: the section of the evaluator, with `data` and `root`, and `stride` for windows of
        frames.
      split: "train" or "val".
      config: the config of the evaluation, with the manifests of a world and the size and the
        number of frames of clips.

    Raises:
      UserError: the ground truth cannot be read.
    """
    data, root = config.data, settings.root
    if settings.data == WORLD:
        name = config[f"{split}_manifest"]
        manifest = manifest_lib.read_manifest(name, AccessRules.from_config(data))
        load = LoadClip.from_config(data, manifest)
        return WorldTruth(name, load, seconds=data.clip_seconds)
    if settings.data == "davis":
        return DavisMasks(root, split)
    if settings.data == "jhmdb":
        return JhmdbJoints(root, split)
    windows = {"size": data.size, "frames": data.frames, "stride": settings.stride}
    if settings.data == "scannet":
        return ScanNet(root, split, **windows)
    if settings.data == "kitti":
        return Kitti(root, split, **windows)
    rules = WindowRules(
        frames=data.frames,
        fps=settings.fps or None,
        stride=settings.stride,
        min_together=min(WindowRules.min_together, data.frames),
    )
    path, seconds = _find_boxes(root, split), data.clip_seconds
    return BoxTracks(path, size=data.size, rules=rules, seconds=seconds)
