"""Compares the training and held-out splits: class ids, unseen classes and copied videos."""

import collections
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import columns as columns_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import shards, video_io
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.held_out import find_shared_manifest
from invnext_jax.data.manifest import Manifest
from invnext_jax.data.video_io import digest_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluators.classification import find_labeled
from invnext_jax.evaluation.inputs import SPLITS
from invnext_jax.synthetic_world import urls
from invnext_jax.video.demux import BadVideo

EXAMPLES = 3  # maximum number of videos or classes listed in a note


class SplitReport(NamedTuple):
    """Videos that are in both splits, and classes that are only in the held-out split.

    Attributes:
      facts: values for results.json: `held_out`, `copies`, and `unseen` for each task.
      notes: sentences about copies, unseen classes, and class numbers that cannot be compared.
    """

    facts: dict[str, Any]
    notes: list[str]


def check_different(config: Any) -> None:
    """Checks that no manifest is used for both splits.

    Raises:
      UserError: a held-out manifest is also a training manifest, and `config.same_manifest` is not
        set.
    """
    if config.same_manifest:
        return
    if name := find_shared_manifest(config.val_manifest, config.train_manifest):
        raise UserError(
            f"config.val_manifest={name} is also in config.train_manifest: use a manifest of "
            "held-out videos, or set config.same_manifest=True to evaluate on training videos"
        )


def choose_tasks(config: Any, needs_labels: bool = True) -> tuple[str, ...]:
    """Returns the tasks of the config, or by default all tasks with labels in both manifests.

    If no evaluator needs labels for training, only the held-out manifest must have them.

    Raises:
      UserError: a manifest is missing, has no label column, or has no labeled video.
    """
    common, columns, manifests = [], [], (config.train_manifest, config.val_manifest)
    if not all(manifests):
        raise UserError("set config.train_manifest and config.val_manifest to CSV files of videos")
    rules = AccessRules.from_config(config.data)
    for manifest in manifests:
        columns.append(manifest_lib.read_manifest(manifest, rules).labels)
        found = [name.removeprefix(manifest_lib.LABEL_PREFIX) for name in columns[-1]]
        missing = set(config.tasks) - set(found)
        if missing and (needs_labels or manifest == manifests[1]):
            raise UserError(
                f"config.tasks contains {sorted(missing)[0]!r}, but {manifest} has no column "
                f"label_{sorted(missing)[0]}: use tasks from {found}, or add the column"
            )
        common.append(found)
    shared = tuple(task for task in common[0] if task in common[1])
    if not needs_labels:
        shared, columns[0] = tuple(common[1]), columns[1]
    elif not shared:
        raise UserError(
            f"{' and '.join(manifests)} have no label_<task> column in common: add one; "
            "launch/prepare_data.py index makes it from a column 'label'"
        )
    tasks = tuple(config.tasks) or shared
    for split, labels in zip(SPLITS.values(), columns, strict=True):
        for task in tasks:
            find_labeled(labels[manifest_lib.LABEL_PREFIX + task], task, split)
    return tasks


def compare_splits(config: Any, tasks: Sequence[str]) -> SplitReport:
    """Compares the manifests of the two splits.

    Copies are recognized by name or, for local files and records of shards, by their contents.
    Clips from the same video are copies if they overlap in time.

    Raises:
      UserError: the manifests number their classes differently.
    """
    class_names, notes = check_class_names(config, tasks)
    train, val = (
        manifest_lib.read_manifest(config[f"{split}_manifest"]) for split in ("train", "val")
    )
    copies = find_copies(train, val)
    if copies:
        examples = ", ".join(ascii(val[row].name) for row in list(copies)[:EXAMPLES])
        notes.append(
            f"{len(copies)} of {len(val)} held-out videos are also training videos (same content), "
            f"such as {examples}. Results on these videos do not measure generalization."
        )
    unseen = {}
    for task in tasks:
        column = manifest_lib.LABEL_PREFIX + task
        if column not in train.labels:  # the evaluation does not train with labels
            continue
        if found := _find_unseen(train.labels[column], val.labels[column]):
            unseen[task] = found
            names = {number: name for name, number in class_names.get(task, {}).items()}
            classes = [names.get(number, number) for number in found["classes"][:EXAMPLES]]
            more = ", ..." if len(found["classes"]) > EXAMPLES else ""
            notes.append(
                f"{task}: {found['videos']} of {found['of']} held-out videos belong to classes "
                f"without training videos ({', '.join(map(str, classes))}{more}; "
                f"{len(found['classes'])} in total). They count as wrong."
            )
    return SplitReport({"held_out": len(val), "copies": len(copies), "unseen": unseen}, notes)


def check_class_names(
    config: Any, tasks: Sequence[str]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Compares the class names of all manifests (see `data.columns`).

    Returns:
      A dict from each task with class names to its class ids by name; and notes about manifests
      without class names.

    Raises:
      UserError: two manifests have different ids for a class, or different classes for an id.
    """
    known: dict[str, tuple[str, dict[str, int]]] = {}
    nameless = collections.defaultdict(list)
    names = map(manifest_lib.list_manifests, (config.train_manifest, config.val_manifest))
    for name in itertools.chain.from_iterable(names):
        columns = _label_columns(name)
        local = not video_io.is_world(name) and not video_io.is_remote(name)
        ids = columns_lib.read_manifest_classes(name) if local else None
        named = column_of_names(columns)
        for task in tasks:
            column = manifest_lib.LABEL_PREFIX + task
            if ids is None or column != named:
                nameless[task] += [name] if column in columns else []
                continue
            first, first_ids = known.setdefault(task, (name, ids))
            if conflict := columns_lib.describe_class_conflict(first_ids, ids):
                raise UserError(
                    f"{first} and {name} number the classes of {task} differently ({conflict}): "
                    "index the second manifest again with "
                    f"--classes={columns_lib.class_names_path(first)}"
                )
            known[task] = first, {**first_ids, **ids}
    notes = [
        f"{task}: {names[0]} has no class names, so its class ids cannot be compared with those "
        f"of {known[task][0]}."
        for task, names in nameless.items()
        if task in known and names
    ]
    return {task: ids for task, (_, ids) in known.items()}, notes


def _label_columns(name: str) -> list[str]:
    if video_io.is_world(name):  # reading the labels of a large world takes a long time
        return [manifest_lib.LABEL_PREFIX + task for task in urls.parse(name).spec.classes]
    return list(manifest_lib.read_manifest(name).labels)


def column_of_names(columns: Sequence[str]) -> str:
    """Returns the label column to which the class names of a manifest belong."""
    return columns[0] if len(columns) == 1 else f"{manifest_lib.LABEL_PREFIX}class"


def _find_unseen(train_b: np.ndarray, val_b: np.ndarray) -> dict[str, Any] | None:
    """Counts the held-out videos whose classes have no training videos; None if there are none."""
    labeled_b = val_b[val_b >= 0]
    unseen_b = labeled_b[~np.isin(labeled_b, train_b)]
    if not len(unseen_b):
        return None
    classes = [int(number) for number in np.unique(unseen_b)]
    return {"videos": len(unseen_b), "of": len(labeled_b), "classes": classes}


def find_copies(train: Manifest, val: Manifest) -> dict[int, int]:
    """Finds held-out videos that are also training videos.

    Returns:
      A dict from rows of `val` to rows of training videos with the same name or contents.
    """
    copies = _match(train, val, *(dict(enumerate(_names(part))) for part in (train, val)))
    rest = [row for row in range(len(val)) if row not in copies]
    sizes = _sizes(train, range(len(train))), _sizes(val, rest)
    shared = set(sizes[0].values()) & set(sizes[1].values())
    digests = (
        _digests(part, [row for row, size in found.items() if size in shared])
        for part, found in zip((train, val), sizes, strict=True)
    )
    return {**copies, **_match(train, val, *digests)}


def _match(train: Manifest, val: Manifest, train_keys: dict[int, Any], val_keys: dict[int, Any]):
    """Maps rows of `val` to rows of `train` that have the same key and overlap in time."""
    wanted, by_key = set(val_keys.values()), collections.defaultdict(list)
    for row, key in train_keys.items():
        if key in wanted:
            by_key[key].append(row)
    found = {}
    for row, key in val_keys.items():
        others = (other for other in by_key.get(key, ()) if _overlap(train, other, val, row))
        if (other := next(others, None)) is not None:
            found[row] = other
    return found


def _overlap(train: Manifest, train_row: int, val: Manifest, val_row: int) -> bool:
    starts = (part.start[row] for part, row in ((train, train_row), (val, val_row)))
    ends = (part.end[row] for part, row in ((train, train_row), (val, val_row)))
    start = max(0.0 if math.isnan(x) else x for x in starts)
    return start < min(math.inf if math.isnan(x) else x for x in ends)


def _names(part: Manifest) -> Iterator[tuple[Any, int]]:
    """Yields the name of each row, as a key. For `world:` URLs, it omits the number of clips."""
    specs = {}
    for path, record in zip(part.paths, part.record.tolist(), strict=True):
        if video_io.is_world(path):
            world, _, clip = path.partition("#")
            if world not in specs:
                specs[world] = urls.parse(world).spec
            yield specs[world], int(clip)
        else:
            yield path, record


def _sizes(part: Manifest, rows: Iterable[int]) -> dict[int, Any]:
    """Returns a dict from row to the size of the local file, or "record" for records of shards."""
    sizes, known = {}, {}
    for row in rows:
        path = part.paths[row]
        if part.record[row] != manifest_lib.NO_RECORD:
            sizes[row] = "record"
        elif not video_io.is_remote(path) and not video_io.is_world(path):
            if path not in known:
                known[path] = _size(path)
            if known[path] is not None:
                sizes[row] = known[path]
    return sizes


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _digests(part: Manifest, rows: Sequence[int]) -> dict[int, str]:
    """Returns a dict from row to the hash of the video's contents, for readable videos."""
    digests, known = {}, {}
    for row in rows:
        video = part[row]
        try:
            if video.record is not None:
                data = shards.read_video(video.path, video.record)
                digests[row] = hashlib.blake2b(data, digest_size=16).hexdigest()
                continue
            if video.path not in known:
                known[video.path] = digest_file(video.path)
            digests[row] = known[video.path]
        except (OSError, BadVideo):  # unreadable videos are counted when the videos are decoded
            continue
    return digests
