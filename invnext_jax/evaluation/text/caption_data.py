"""Captions, prompts and multiple choices of an evaluation, from files or from a world.

Shape key: j captions, b videos.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invnext_jax import regular_file
from invnext_jax.checkpointing import video_digests
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.class_names import class_names_path
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError
from invnext_jax.evaluation import split_checks
from invnext_jax.evaluation.text import scores
from invnext_jax.evaluation.truth import captions as captions_lib
from invnext_jax.evaluation.truth.captions import Captions, Choices
from invnext_jax.synthetic_world import captions as world_captions

SUFFIX = ".captions.jsonl"  # suffix of the file next to a manifest; see launch/make_world.py


class EvaluationTexts(NamedTuple):
    """All texts of an evaluation.

    Attributes:
      train: captions of the training videos.
      val: captions of the held-out videos; None without retrieval.
      prompts: prompts of each class, by task; the class ids are the positions.
      choices: multiple choices of held-out videos, by name.
      vocabulary: texts with all words of the captions.
      notes: sentences about videos without captions.
    """

    train: Captions
    val: Captions | None
    prompts: dict[str, list[list[str]]]
    choices: dict[str, Choices]
    vocabulary: list[str]
    notes: list[str]


def read_texts(config: Any, tasks: Sequence[str]) -> EvaluationTexts:
    """Reads the captions of both splits, the class names and the multiple choices.

    Raises:
      UserError: a file is missing or damaged, a class has no name, or there is nothing to measure.
    """
    rules, settings = AccessRules.from_config(config.data), config.text
    manifests = [
        manifest_lib.read_manifest(config[f"{split}_manifest"], rules) for split in ("train", "val")
    ]
    paths = {name: find_file(config, name) for name in ("train_captions", "val_captions")}
    train, val = (
        _find_captions(manifest, path, settings.join, rules)
        for manifest, path in zip(manifests, paths.values(), strict=True)
    )
    if train is None:
        raise UserError(
            f"{config.train_manifest} has no captions: set config.text.train_captions to a JSON "
            f"file of them, or name it like the manifest, with {SUFFIX}"
        )
    if val is not None:
        scores.check_pairs(val)
    level = _find_level(manifests[1])
    choices, unused = {}, []
    if level:
        prompts, vocabulary = _world_prompts(level, tasks), _world_texts(level)
        choices = {
            task: captions_lib.make_world_choices(manifests[1], task)
            for task in ("motion",)
            if task in prompts
        }
    else:
        prompts, unused = _name_prompts(config, tasks, manifests[1])
        vocabulary = train.texts
    if settings.choices:
        path = find_file(config, "choices")
        choices["choices"] = captions_lib.read_choices(path, manifests[1])
    if not prompts and val is None and not choices:
        raise UserError(
            f"{config.val_manifest} has neither captions nor class names nor choices, so nothing "
            "can be measured: set config.text.val_captions, or write class names (*.classes.json)"
            f"{' '.join(['', *unused])}"
        )
    pairs = zip(manifests, (train, val), strict=True)
    notes = [note for manifest, found in pairs for note in _describe_missing(manifest, found)]
    notes += [_describe_skipped("choices", c.skipped) for c in choices.values() if c.skipped]
    return EvaluationTexts(train, val, prompts, choices, vocabulary, notes)


def find_file(config: Any, name: str) -> str:
    """Returns the path that an option of `config.text` specifies; "" if the option is empty."""
    path, root = config.text[name], config.data.root
    return os.path.join(root, path) if path and root else path


def hash_files(config: Any) -> str:
    """Returns a hash of the files of captions, class names, choices and the text tower.

    For files of the text tower, the size and the first and last 64 KiB are hashed.

    Raises:
      UserError: one of these files is too large or not a regular file.
    """
    digest = hashlib.sha256()
    folder = Path(config.text.encoder)
    if config.text.encoder and os.path.isdir(folder):
        paths = sorted(str(path) for path in folder.iterdir() if os.path.isfile(path))
        for found in video_digests.digest_files(paths, config.data.clip_seconds):
            digest.update(f"{found}\n".encode())
    named = [find_file(config, name) for name in ("train_captions", "val_captions", "choices")]
    manifests = [
        name
        for split in ("train", "val")
        for name in manifest_lib.list_manifests(config[f"{split}_manifest"])
    ]
    named += [*map(_captions_path, manifests), *map(class_names_path, manifests)]
    for path in map(Path, filter(None, named)):
        if os.path.isfile(path):
            try:
                with regular_file.open_binary(path, captions_lib.MAX_BYTES) as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{path} cannot be read ({reason}): use another file") from error
    return digest.hexdigest()


def _captions_path(manifest: str) -> str:
    """Returns the path of the captions that belong to a manifest."""
    return manifest.removesuffix(".csv") + SUFFIX


def _find_captions(
    manifest: Manifest, path: str, join: bool, rules: AccessRules
) -> Captions | None:
    """Returns the captions of the file `path`; without a file, those of each manifest."""
    if path:
        return captions_lib.read_captions(path, manifest, join=join)
    names = manifest_lib.list_manifests(manifest.file)
    if len(names) == 1:
        return _read_own_captions(manifest, join)
    texts, row_j, skipped, first = [], [], 0, 0
    for part in (manifest_lib.read_manifest([name], rules) for name in names):
        if found := _read_own_captions(part, join):
            texts += found.texts
            row_j.append(first + found.row_j)
            skipped += found.skipped
        first += len(part)
    return captions_lib.make_captions(texts, np.concatenate(row_j), skipped) if texts else None


def _read_own_captions(manifest: Manifest, join: bool) -> Captions | None:
    """Returns the captions next to a manifest, or those of its world; None if there are none."""
    path = _captions_path(manifest.file)
    if os.path.isfile(path):
        return captions_lib.read_captions(path, manifest, join=join)
    if captions_lib.is_world_clip(manifest.paths[0]):
        return captions_lib.describe_world(manifest)
    return None


def _describe_missing(manifest: Manifest, found: Captions | None) -> list[str]:
    """Returns sentences about videos without a caption and about skipped captions."""
    if found is None:
        return []
    notes, missing = [], len(manifest.paths) - len(np.unique(found.row_j))
    if missing:
        notes.append(
            f"{missing} of {len(manifest.paths)} videos of {manifest.file} have no caption and are "
            "left out of training and retrieval."
        )
    if found.skipped:
        notes.append(_describe_skipped(f"captions of {manifest.file}", found.skipped))
    return notes


def _describe_skipped(name: str, count: int) -> str:
    return f"{count} entries of the {name} are damaged or describe other videos and are skipped."


def _find_level(manifest: Manifest) -> str:
    """Returns the level of the synthetic world; "" if the videos are not from a world."""
    path = manifest.paths[0]
    return captions_lib.find_level(path) if captions_lib.is_world_clip(path) else ""


def _world_texts(level: str) -> list[str]:
    return [caption.text for caption in world_captions.all_video_captions(level)]


def _world_prompts(level: str, tasks: Sequence[str]) -> dict[str, list[list[str]]]:
    """Returns, for each class of an attribute, all captions that mention it."""
    prompts: dict[str, dict[int, list[str]]] = {}
    for caption in world_captions.all_video_captions(level):
        for task, number in caption.attributes.items():
            if task in tasks:
                prompts.setdefault(task, {}).setdefault(number, []).append(caption.text)
    return {task: [found[i] for i in range(len(found))] for task, found in prompts.items()}


def _name_prompts(
    config: Any, tasks: Sequence[str], manifest: Manifest
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """Makes prompts from class names and templates, for each task with class names.

    Returns:
      The prompts by task, and notes about class names that are not used.
    """
    named, notes = split_checks.check_class_names(config, tasks)
    prompts = {
        task: fill_templates(
            names, config.text.templates, manifest.labels[manifest_lib.LABEL_PREFIX + task], task
        )
        for task, names in named.items()
    }
    return prompts, notes


def fill_templates(
    names: Mapping[str, int], templates: Sequence[str], labels_b: np.ndarray, task: str
) -> list[list[str]]:
    """Returns the prompts of each class.

    Args:
      names: class ids by name.
      templates: sentences in which "{}" is replaced by the name.
      labels_b: labels of the held-out videos, negative for none.
      task: name of the task, for error messages.

    Raises:
      UserError: a class from 0 to the largest id or label has no name.
    """
    by_id = {number: name for name, number in names.items()}
    classes = 1 + max([*by_id, *labels_b.tolist()])
    missing = next((number for number in range(classes) if number not in by_id), None)
    if missing is not None:
        raise UserError(
            f"class {missing} of label_{task} has no name: add it to the class names "
            "(*.classes.json) of the manifest"
        )
    return [[template.format(by_id[i]) for template in templates] for i in range(classes)]
