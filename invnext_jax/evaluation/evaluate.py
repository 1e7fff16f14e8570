"""The probe of one checkpoint: features, linear probes, controls and brackets -> results.json.

Everything that was measured is kept in the workdir under a key of what it depends on, so a command
that was killed goes on, and one that is repeated has nothing to do.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from invnext_jax import atomic_file
from invnext_jax.checkpointing import run_metadata
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError
from invnext_jax.evaluation import baselines, features
from invnext_jax.evaluation.evaluators import linear_probe, supervised
from invnext_jax.evaluation.evaluators.linear_probe import ProbeResult

FORMAT = 1
RESULTS = "results.json"
SPLITS = ("training", "held-out")


def run_probe(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Probes `config.checkpoint` and writes `workdir/results.json`.

    Args:
      config: see configs/probe.py.
      workdir: made if needed.

    Returns:
      What is in results.json: `rows` (one for each input, pooling and task), `tokens` (statistics
      of the grid tokens) and all that is needed to repeat it.

    Raises:
      UserError: the checkpoint, a manifest or a label cannot be used.
    """
    start = time.perf_counter()
    loaded = features.load_encoder(config.checkpoint, ema=config.ema)
    config = resolve(config, loaded.config)
    tasks = choose_tasks(config)
    workdir = Path(workdir)
    asked = {
        k: v
        for k, v in run_metadata.config_to_json(config).items()
        if k not in ("checkpoint", "ema")
    }
    digests = [manifest_lib.hash_manifests(manifest) for manifest in _manifests(config)]
    data_key = [asked, *digests]
    encoder_record = run_metadata.config_to_json(
        ml_collections.ConfigDict({"encoder": loaded.config.encoder, "dtype": loaded.config.dtype})
    )
    key = _hash([data_key, encoder_record, _hash_tree(loaded.params)])
    found = _read(workdir / RESULTS, key)
    if found:
        print(f"{workdir / RESULTS} is up to date.", flush=True)
        return found

    results = _probe_encoder(config, loaded, loaded.params, tasks, "encoder")
    if config.controls:
        # Path and parameters of the checkpoint do not enter: a retrained run keeps its controls.
        control_key = _hash([data_key, encoder_record, "controls"])
        controls = _read(workdir / "controls.json", control_key)
        if not controls:
            print("controls", flush=True)
            controls = {"key": control_key, **_run_controls(config, loaded, tasks)}
            _write(workdir / "controls.json", controls)
        results["rows"] += controls["rows"]
        results["tokens"] |= controls["tokens"]
        results["supervised_curve"] = controls["supervised_curve"]
    results = {
        "format": FORMAT,
        "key": key,
        "checkpoint": str(config.checkpoint),
        "stage": loaded.config.stage,
        "tasks": list(tasks),
        **results,
        "encoder": encoder_record,
        "run": run_metadata.describe_run(config, digests[0]),
        "seconds": time.perf_counter() - start,
    }
    _write(workdir / RESULTS, results)
    return results


def resolve(config: Any, encoder_config: Any) -> ml_collections.FrozenConfigDict:
    """Fills in what the probe takes from its encoder, and checks the rest.

    Raises:
      UserError: an unknown pooling, or a size that the encoder's patch does not divide.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    e, data = encoder_config.encoder, config.data
    data.frames, data.size = data.frames or e.frames, data.size or e.size
    data.short_side = data.short_side or data.size
    for name in ("train_manifest", "val_manifest"):
        config[name] = manifest_lib.find_manifests(config[name])
    data.manifest = config.train_manifest
    unknown = set(config.poolings) - set(features.POOLINGS)
    if unknown:
        raise UserError(f"unknown poolings {sorted(unknown)}: choose of {features.POOLINGS}")
    if data.size % e.patch:
        raise UserError(
            f"config.data.size={data.size} must divide by the patch of {e.patch} pixels"
        )
    return ml_collections.FrozenConfigDict(config)


def choose_tasks(config: Any) -> tuple[str, ...]:
    """The tasks of the config, or all that both manifests have labels for.

    Raises:
      UserError: a manifest is missing, lacks a label or has no video that has it.
    """
    common, columns, manifests = [], [], _manifests(config)
    if not all(manifests):
        raise UserError("set config.train_manifest and config.val_manifest to CSV files of videos")
    for manifest in manifests:
        columns.append(manifest_lib.read_manifest(manifest).labels)
        found = [name.removeprefix(manifest_lib.LABEL_PREFIX) for name in columns[-1]]
        missing = set(config.tasks) - set(found)
        if missing:
            raise UserError(f"{manifest} has no column label_{sorted(missing)[0]}: add it")
        common.append(found)
    shared = tuple(task for task in common[0] if task in common[1])
    if not shared:
        raise UserError(f"{' and '.join(manifests)} share no label_<task> column: add one")
    tasks = tuple(config.tasks) or shared
    for split, labels in zip(SPLITS, columns, strict=True):
        for task in tasks:
            linear_probe.find_labeled(labels[manifest_lib.LABEL_PREFIX + task], task, split)
    return tasks


def _manifests(config) -> tuple[str, str]:
    return config.train_manifest, config.val_manifest


def _batches(config, manifest: str, batch_size: int):
    return pipeline.make_eval_dataset(config.data, manifest=manifest, batch_size=batch_size)


def _probe_encoder(config, loaded, params, tasks, name: str) -> dict[str, Any]:
    """Rows and token statistics of one set of parameters."""
    start = time.perf_counter()
    train, val = (
        features.extract(loaded.encoder, params, _batches(config, manifest, config.batch_size))
        for manifest in _manifests(config)
    )
    count, seconds = len(train.index_b) + len(val.index_b), time.perf_counter() - start
    print(f"{name}: features of {count} clips in {seconds:.0f} s", flush=True)
    rows = []
    for pooling in config.poolings:
        data = (linear_probe.normalize_rows(part.pooled[pooling]) for part in (train, val))
        # By all training videos: their scale needs no labels.
        data = linear_probe.standardize(*data)
        rows += _rows(name, pooling, tasks, data, (train.labels, val.labels), _linear(config))
    return {"rows": rows, "tokens": {name: dataclasses.asdict(val.tokens)}}


def _linear(config) -> Callable[..., ProbeResult]:
    return lambda *data: linear_probe.fit_linear(
        *data,
        inverse_penalties=config.inverse_penalties,
        held_out=config.held_out,
        seed=config.seed,
    )


def _rows(
    name: str,
    what: str,
    tasks: Sequence[str],
    data: Sequence[np.ndarray],
    labels: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    fit: Callable[..., ProbeResult],
) -> list[dict[str, Any]]:
    """One row for each task: `fit` on training data and labels, then held-out ones.

    Videos without a label of the task are left out.
    """
    rows = []
    for task in tasks:
        given = []
        for split, part, found in zip(SPLITS, data, labels, strict=True):
            labeled_b = linear_probe.find_labeled(found[task], task, split)
            given += [part[labeled_b], found[task][labeled_b]]
        linear_probe.check_classes(given[1], task)
        rows.append(_row(name, what, task, fit(*given)))
    return rows


def _row(name: str, what: str, task: str, result: ProbeResult) -> dict[str, Any]:
    return {"name": name, "input": what, "task": task, **dataclasses.asdict(result)}


def _run_controls(config, loaded, tasks) -> dict[str, Any]:
    """Random initialisation, first frame, bag of frames, ground-truth boxes, supervised."""
    found = _probe_encoder(
        config, loaded, features.init_encoder(loaded.config, config.seed), tasks, "random"
    )
    parts = [
        baselines.load_videos(_batches(config, manifest, config.batch_size))
        for manifest in _manifests(config)
    ]
    labels = tuple(part[1] for part in parts)
    rows = found["rows"]
    for name, see in {
        "first_frame": baselines.first_frame,
        "bag_of_frames": baselines.bag_of_frames,
    }.items():
        data = linear_probe.standardize(*(see(part[0]) for part in parts))
        rows += _rows(name, "pixels", tasks, data, labels, _linear(config))
    rows += _box_rows(config, tasks, parts, labels)
    curve = []
    if config.supervised.steps:
        print(f"supervised training, {config.supervised.steps} steps", flush=True)
        by_task, curve = supervised.train_supervised(
            loaded.encoder,
            parts[0][:2],
            parts[1][:2],
            tasks=tasks,
            config=config.supervised,
            seed=config.seed,
        )
        rows += [_row("supervised", "end to end", task, result) for task, result in by_task.items()]
    return {"rows": rows, "tokens": found["tokens"], "supervised_curve": curve}


def _box_rows(config, tasks, parts, labels) -> list[dict[str, Any]]:
    boxes = [
        baselines.load_boxes(manifest, part[2])
        for manifest, part in zip(_manifests(config), parts, strict=True)
    ]
    if any(box is None for box in boxes):
        print("no rows of boxes: a manifest has no ground truth beside it, is drawn or joined")
        return []
    rows = []
    for name, see in {
        "first_frame": baselines.first_box,
        "bag_of_frames": baselines.bag_of_boxes,
        "ordered_track": baselines.ordered_boxes,
    }.items():
        rows += _rows(
            name,
            "boxes",
            tasks,
            tuple(see(box) for box in boxes),
            labels,
            lambda *data: linear_probe.fit_forest(*data, trees=config.trees, seed=config.seed),
        )
    return rows


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hash_tree(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """The file's content if it was measured under `key`."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    return found if found.get("key") == key else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    atomic_file.write_text(path, json.dumps(content, indent=1) + "\n")
