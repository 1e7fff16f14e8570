"""Compares the training and held-out splits: class ids, unseen classes and copied videos."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.class_names import compare_manifests
from invnext_jax.data.copies import find_copies, find_repeats
from invnext_jax.data.held_out import find_shared_manifest
from invnext_jax.errors import UserError
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators.classification import check_classes, find_labeled
from invnext_jax.json_file import hash_json

_RECALL = "anticipation"  # the evaluator that drops the videos of classes without training videos
EXAMPLES = 3  # maximum number of videos or classes listed in a note


class SplitReport(NamedTuple):
    """Videos that are in both splits or repeated, and classes that only the held-out split has.

    Attributes:
      facts: values for results.json: `held_out`, `copies`, `repeats`, and `unseen` for each task.
      notes: sentences about copies, repeated videos, unseen classes, and class numbers that cannot
        be compared.
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
      UserError: a manifest is missing, has no label column, or has no labeled video; or a task has
        a single class in the training manifest, and an evaluator needs labels for training.
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
            labels_b = labels[manifest_lib.LABEL_PREFIX + task]
            labeled_b = find_labeled(labels_b, task, split)
            if needs_labels and split == SPLITS["train"]:
                check_classes(labels_b[labeled_b], task)
    return tasks


def compare_splits(config: Any, tasks: Sequence[str], evaluators: Sequence[str]) -> SplitReport:
    """Compares the manifests of the two splits.

    Copies are recognized by name or, for local files and records of shards, by their contents.
    Clips from the same video are copies if they overlap in time.

    Args:
      config: the config of the evaluation.
      tasks: label columns that are used.
      evaluators: names of the evaluators that use the manifests.

    Raises:
      UserError: the manifests number their classes differently.
    """
    class_names, notes = check_class_names(config, tasks)
    rules = AccessRules.from_config(config.data)
    train, val = (
        manifest_lib.read_manifest(config[f"{split}_manifest"], rules) for split in ("train", "val")
    )
    for column in sorted(train.labels.keys() ^ val.labels.keys()):
        if (
            tasks
            and not config.tasks
            and column.removeprefix(manifest_lib.LABEL_PREFIX) not in tasks
        ):
            split = "training" if column in train.labels else "held-out"
            notes.append(
                f"Only the {split} manifest has the column {column}, so it is not evaluated."
            )
    copies = find_copies(train, val)
    if copies:
        examples = ", ".join(ascii(val[row].name) for row in list(copies)[:EXAMPLES])
        notes.append(
            f"{len(copies)} of {len(val)} held-out videos are also training videos (same name or "
            f"content), such as {examples}. Results on these videos do not measure generalization."
        )
    repeats = find_repeats(val)
    if repeats:
        examples = ", ".join(ascii(val[row].name) for row in list(repeats)[:EXAMPLES])
        notes.append(
            f"{len(repeats)} of {len(val)} held-out videos occur earlier in the same list (same "
            f"name or content), such as {examples}. They count several times."
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
                f"with no training videos ({', '.join(map(str, classes))}{more}; "
                f"{len(found['classes'])} in total). {_explain_unseen(evaluators)}"
            )
    counts = {"held_out": len(val), "copies": len(copies), "repeats": len(repeats)}
    return SplitReport({**counts, "unseen": unseen}, notes)


def check_class_names(
    config: Any, tasks: Sequence[str]
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Compares the class names of the manifests of both splits.

    Returns:
      The class ids by name of each task, and notes; see `class_names.compare_manifests`.

    Raises:
      UserError: two manifests have different ids for a class, or different classes for an id.
    """
    splits = map(manifest_lib.list_manifests, (config.train_manifest, config.val_manifest))
    rules = AccessRules.from_config(config.data)
    return compare_manifests(list(itertools.chain.from_iterable(splits)), tasks, rules)


def hash_class_names(config: Any, tasks: Sequence[str]) -> str:
    """Returns a hash of the results of `check_class_names`, whose files may change at any time."""
    return hash_json([*check_class_names(config, tasks)])


def _explain_unseen(evaluators: Sequence[str]) -> str:
    """Returns a sentence about how videos of unseen classes are counted."""
    sentences = []
    if set(evaluators) - {_RECALL}:
        sentences.append("The accuracies of probes count them as wrong.")
    if _RECALL in evaluators:
        sentences.append("The class-mean recall of anticipation leaves them out.")
    return " ".join(sentences)


def _find_unseen(train_b: np.ndarray, val_b: np.ndarray) -> dict[str, Any] | None:
    """Counts the held-out videos whose classes have no training videos; None if there are none."""
    labeled_b = val_b[val_b >= 0]
    unseen_b = labeled_b[~np.isin(labeled_b, train_b)]
    if not len(unseen_b):
        return None
    classes = [int(number) for number in np.unique(unseen_b)]
    return {"videos": len(unseen_b), "of": len(labeled_b), "classes": classes}
