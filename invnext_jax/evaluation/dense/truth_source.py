"""Opens the ground truth of a data set by the name in a config."""

from typing import Any

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.clips import LoadClip
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.box_tracks import BoxTracks
from invnext_jax.evaluation.truth.depth_folders import Kitti, ScanNet
from invnext_jax.evaluation.truth.joints import JhmdbJoints
from invnext_jax.evaluation.truth.masks import DavisMasks
from invnext_jax.evaluation.truth.track_windows import WindowRules
from invnext_jax.evaluation.truth.truth import Truth
from invnext_jax.evaluation.truth.world import WorldTruth

# Options of a section on which the ground truth depends, besides those of the clips.
OPTIONS = ("data", "root", "stride", "fps")
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
    path, seconds = f"{root}/{split}/tracks.jsonl", data.clip_seconds
    return BoxTracks(path, size=data.size, rules=rules, seconds=seconds)
