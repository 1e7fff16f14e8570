"""Labels and class names of the videos of an evaluation, read from its manifests.

Shape key: b videos.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from invnext_jax import regular_file
from invnext_jax.data import class_names, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.truth import captions
from invnext_jax.synthetic_world import urls
from invnext_jax.synthetic_world.spec import WorldSpec

MAX_MANIFESTS = 100  # of a split


class VideoLabels(NamedTuple):
    """The labels of a task.

    Attributes:
      labels_b: int class of each video in the order of the manifest; negative for none.
      names: names of the classes; empty if they have none.
    """

    labels_b: np.ndarray
    names: Mapping[int, str]

    def name_class(self, number: int) -> str:
        """Returns the name of a class, or its number."""
        return self.names.get(number, str(number))


def open_manifest(
    results: Mapping[str, Any], split: str, row: Mapping[str, Any] | None = None
) -> Manifest | None:
    """Reads the manifest of a split; None if it is unknown, has changed or cannot be read.

    Results may come from an untrusted source, so a manifest that `is_local` rejects is not opened.

    Args:
      results: results of an evaluation.
      split: "train" or "val".
      row: row of the results. Its evaluator may have its own manifests.
    """
    config = results.get("run", {}).get("config", {})
    digest = results.get("manifests", {}).get(split)
    if row is not None and (section := find_section(config, row)) is not None:
        config, digest = section, row.get("videos_key")
    manifest = config.get(f"{split}_manifest", "")
    return read_unchanged(manifest, digest) if isinstance(manifest, str) and digest else None


@functools.cache
def read_unchanged(names: str, digest: str) -> Manifest | None:
    """Reads manifests with the given hash; None if they have another one or cannot be read.

    The result is cached. Call `read_unchanged.cache_clear()` to read replaced manifests again.
    """
    try:
        if not is_local(names) or manifest_lib.hash_manifests(names) != digest:
            return None
        return manifest_lib.read_manifest(names)
    except (UserError, *regular_file.DAMAGE) as error:
        logging.warning("the videos of %s are not shown: %s", names, error)
        return None


def is_local(names: Any) -> bool:
    """Returns whether manifests are regular local files or rendered worlds.

    There may be at most `MAX_MANIFESTS`, with at most `urls.MAX_VIDEOS` rendered clips in total,
    because all of their labels are computed.

    Args:
      names: names of manifests, separated by commas. Values of other types are rejected.
    """
    if not isinstance(names, str) or names.count(",") >= MAX_MANIFESTS:
        return False
    try:
        clips = sum(map(_count_rendered, manifest_lib.split_names(names)))
    except (UserError, OSError, ValueError):
        return False
    return clips <= urls.MAX_VIDEOS


def _count_rendered(name: str) -> int:
    """Returns the number of rendered clips of a manifest.

    Raises:
      UserError: it is neither a regular local file nor a valid rendered world.
    """
    if video_io.is_world(name):
        return urls.parse(name).videos
    if video_io.is_remote(name) or not os.path.isfile(name):
        raise UserError(f"{name} is not a local file")
    return 0


def find_section(config: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """Returns the section of a row's evaluator if it has its own manifests, otherwise None."""
    evaluator = registry.EVALUATORS.get(row["evaluator"])
    for name in getattr(evaluator, "options", ()):
        section = config.get(name)
        if isinstance(section, Mapping) and section.get("val_manifest"):
            return section
    return None


def read_labels(
    results: Mapping[str, Any],
    split: str,
    tasks: Sequence[str],
    row: Mapping[str, Any] | None = None,
) -> dict[str, VideoLabels]:
    """Reads the labels of tasks. Tasks without labels are left out.

    Args:
      results: results of an evaluation.
      split: "train" or "val".
      tasks: names of tasks.
      row: see `open_manifest`.
    """
    manifest = open_manifest(results, split, row)
    try:
        names = _read_names(manifest, tasks) if manifest else {}
    except (UserError, *regular_file.DAMAGE):
        return {}
    found = {}
    for task in tasks if manifest else ():
        labels_b = manifest.labels.get(manifest_lib.LABEL_PREFIX + task)
        if labels_b is not None:
            found[task] = VideoLabels(np.asarray(labels_b), names.get(task, {}))
    return found


def _read_names(manifest: Manifest, tasks: Sequence[str]) -> dict[str, Mapping[int, str]]:
    """Returns the class names of a manifest by task; those of a world are known."""
    if captions.is_world_clip(manifest.paths[0]):
        classes = WorldSpec(level=captions.find_level(manifest.paths[0])).classes
        return {task: dict(enumerate(found)) for task, found in classes.items()}
    names: dict[str, dict[int, str]] = {task: {} for task in tasks}
    for name in filter(os.path.isfile, manifest_lib.split_names(manifest.file)):
        columns = class_names.read_label_columns(name)
        found = class_names.read_manifest_classes(name, columns, notes=[])
        for task in tasks:
            ids = found.get(manifest_lib.LABEL_PREFIX + task, {})
            names[task] |= {number: text for text, number in ids.items()}
    return names
