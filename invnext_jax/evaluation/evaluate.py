"""Evaluates checkpoints: runs the evaluators of a config and writes results.json.

The extracted features and the rows of each evaluator are cached in the workdir. The cache key
includes everything that they depend on. A command that was killed resumes when it is run again.
Repeating a finished command recomputes nothing.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from invnext_jax.checkpointing import run_metadata
from invnext_jax.checkpointing.workdir import Workdir
from invnext_jax.errors import UserError
from invnext_jax.evaluation import (
    clip_settings,
    evaluation_data,
    features,
    nearest_neighbors,
    pretrained,
    results_file,
    split_checks,
    unused_options,
    video_scores,
)
from invnext_jax.evaluation.evaluation_data import SPLITS, EvaluationData
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.evaluators.evaluator import Evaluator
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.results_file import RESULTS
from invnext_jax.json_file import hash_json
from invnext_jax.multihost import consensus
from invnext_jax.multihost.distributed import log_on_process_0
from invnext_jax.training import jax_options

ALL_STEPS = "all"
NEIGHBORS = "neighbors-encoder.npz"  # next to the rows


def evaluate_checkpoint(
    config: ml_collections.ConfigDict, workdir: str | Path, overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Evaluates `config.checkpoint`, or those of `config.steps`, and writes `workdir/results.json`.

    Args:
      config: see configs/eval/tasks/linear_probe.py.
      workdir: output folder; created if needed.
      overrides: dotted names of the options that were set on the command line.

    Returns:
      The content of results.json: `rows` (see `Row.to_json`), `tokens` (statistics of the grid
      tokens), `clips` (see `clip_settings.read_settings`), `splits` and `notes` (see
      `split_checks.SplitReport`), `checkpoint_notes` (those about the checkpoint), and the settings
      that are needed to repeat the evaluation. With `config.steps`, they are those of the last
      step, and `steps` lists all of them; see `results_file`.

    Raises:
      UserError: the checkpoint, an option (also of JAX), a manifest or a label is invalid, an
        option in `overrides` has no effect, or `workdir` cannot be written or is in use.
    """
    jax_options.check_options()
    workdir = Path(workdir)
    with contextlib.ExitStack() as stack:
        with consensus.all_hosts_agree("opening the workdir"):
            stack.enter_context(contextlib.closing(Workdir(workdir)))
        open_data = functools.cache(EvaluationData)  # the videos are hashed once for all steps
        if not config.steps:
            return _evaluate(config, workdir, overrides, open_data)
        steps = find_steps(config)
        for number, step in enumerate(steps, 1):
            log_on_process_0(f"checkpoint {number} of {len(steps)}: step {step}")
            results = _evaluate(config, workdir, overrides, open_data, step)
        folder = results_file.step_folder(workdir, step)
        results = {**results_file.move_files(results, folder, workdir), "steps": steps}
        results_file.write(workdir / RESULTS, results)
        return results


def find_steps(config: Any) -> list[int]:
    """Returns the steps of `config.steps` in ascending order.

    Raises:
      UserError: the checkpoint is not a run, or a step is not that of a checkpoint.
    """
    with consensus.all_hosts_agree("listing the checkpoints") as shared:
        shared.value = pretrained.list_steps(config.checkpoint)
    if not shared.value:
        raise UserError(
            f"config.steps={config.steps!r} needs the workdir of a run with checkpoints, but "
            f"{config.checkpoint} has none: remove the option"
        )
    if config.steps == ALL_STEPS:
        return shared.value
    names = dict.fromkeys(part.strip() for part in config.steps.split(","))
    found = {str(step): step for step in shared.value}
    if unknown := names.keys() - found.keys():
        raise UserError(
            f"config.steps={config.steps!r}: {config.checkpoint} has no checkpoint "
            f"{min(unknown)!r}, only those of steps {', '.join(found)}: use these numbers, or "
            f"{ALL_STEPS!r}"
        )
    return sorted(found[name] for name in names)


def _evaluate(
    config: Any,
    workdir: Path,
    overrides: Iterable[str],
    open_data: Callable[..., EvaluationData],
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint, by default the newest one of a run; see `evaluate_checkpoint`.

    The results of a `step` are written to a subfolder. The features of a step replace those of the
    step before, so that they need space only once.
    """
    start = time.perf_counter()
    folder = workdir if step is None else results_file.step_folder(workdir, step)
    encoder = pretrained.load_frozen(config.checkpoint, ema=config.ema, step=step)
    given, config = config, evaluation_data.resolve(config, encoder)
    features.check_config(config)
    evaluators = registry.find_evaluators(config.evaluators)
    registry.check_running(evaluators, config.controls)
    for evaluator in evaluators:
        evaluator.check_config(config)
    unused_options.check_overrides(given, config, overrides, evaluators)
    has_manifests = any(registry.needs_manifests(evaluator, config) for evaluator in evaluators)
    needs_labels = any(map(registry.needs_labels, evaluators))
    tasks = split_checks.choose_tasks(config, needs_labels) if has_manifests else ()
    clips = clip_settings.read_settings(config, encoder)
    stage = encoder.loaded.config.stage if encoder.loaded else ""
    parameters = ", moving average of the parameters" if config.ema else ""
    log_on_process_0(
        f"{config.checkpoint}: {stage or encoder.name}{parameters}, {encoder.depth} blocks of "
        f"width {encoder.width}, on {clip_settings.describe_clips(clips)}"
    )
    class_names = ""
    if has_manifests:
        split_checks.check_different(config)
        class_names = split_checks.hash_class_names(config, tasks)
    else:
        config = evaluation_data.drop_manifests(config)
    dataset = open_data(config, tasks)
    digests = [*dataset.digests.values(), *dataset.video_digests.values()]
    data_key = [_options_of_rows(config), *digests, encoder.record]
    checkpoint_key = encoder.key
    predictor_keys = _predictor_keys(encoder, evaluators)
    code = {evaluator.name: registry.describe_source(evaluator, config) for evaluator in evaluators}
    parts = [data_key, checkpoint_key, code, list(config.evaluators), config.controls]
    key = hash_json([*parts, *predictor_keys.values()])
    about = {
        "checkpoint": str(config.checkpoint),
        "step": encoder.loaded.step if encoder.loaded and step is None else step,
        "stage": stage,
        "title": encoder.name,
        results_file.RUN_HASH: (encoder.loaded and encoder.loaded.run_sha256) or None,
        "class_names": class_names,
        "checkpoint_notes": [
            *encoder.describe_damaged(config.checkpoint),
            *clip_settings.compare_with_training(clips, encoder.loaded and encoder.loaded.config),
        ],
    }
    results = results_file.read_cache(folder / RESULTS, key, folder)
    if results and all(results.get(name, value) == value for name, value in about.items()):
        log_on_process_0(results_file.describe_reuse(folder / RESULTS, results))
        if "videos" not in results:  # of an older version; the key contains the same hashes
            results["videos"] = dict(dataset.video_digests)
            results_file.write(folder / RESULTS, results)
        return results
    measured = results  # of the same weights under another name; its rows are read from their files
    results_file.warn_if_replaced(folder / RESULTS, str(config.checkpoint), key)

    splits = split_checks.SplitReport({}, [])
    if has_manifests:
        names = [e.name for e in evaluators if registry.needs_manifests(e, config)]
        splits = split_checks.compare_splits(config, tasks, names)
    notes = [*about["checkpoint_notes"], *splits.notes]
    notes += features.describe_poolings(encoder, config.poolings)
    for note in notes:
        log_on_process_0(f"note: {note}")
    measurements = []
    cache = FeatureCache(workdir / "features", config.features.max_gb)
    dense = registry.dense_features(evaluators, config)
    inputs = EvalInputs("encoder", dataset, lambda: encoder, cache, dense)
    # The key of the controls contains neither the path nor the parameters of the checkpoint, so
    # their cached rows stay valid if the checkpoint changes.
    random_encoder = functools.partial(encoder.with_random_params, config.seed)
    untrained = EvalInputs("random", dataset, random_encoder, cache, dense)
    for evaluator, subject, subject_key in _plan(evaluators, inputs, untrained, config.controls):
        source = code[evaluator.name]
        key_parts = [data_key, evaluator.name, source, subject_key or checkpoint_key]
        key_parts += filter(None, [predictor_keys.get(evaluator.name)])
        # Rows that do not depend on the parameters of the checkpoint are shared by all steps.
        rows_folder = (workdir if subject_key else folder) / "rows"
        path = rows_folder / f"{evaluator.name}-{subject.name}.json"
        measure = functools.partial(_measure, evaluator, subject, config, path.with_suffix(".npz"))
        found = _cached(path, hash_json(key_parts), measure)
        measurements.append(results_file.move_files(found, rows_folder.parent, folder))
    found_notes = [measurement.get("notes", ()) for measurement in measurements]
    results = {
        "format": results_file.FORMAT,
        "key": key,
        **about,
        "manifests": dict(dataset.digests),
        "videos": dict(dataset.video_digests),
        "tasks": list(dict.fromkeys(row["task"] for m in measurements for row in m["rows"])),
        "rows": [row for measurement in measurements for row in measurement["rows"]],
        "tokens": {name: t for m in measurements for name, t in m["tokens"].items()},
        "neighbors": next((m["neighbors"] for m in measurements if m.get("neighbors")), ""),
        "encoder": encoder.record,
        "clips": clips,
        "splits": splits.facts | _count_unreadable(measurements) if has_manifests else {},
        "notes": list(dict.fromkeys(itertools.chain(notes, *found_notes))),
        "run": run_metadata.describe_run(config, digests[0]),
        "seconds": time.perf_counter() - start,
    }
    if measured:
        results = results_file.keep_origin(results, measured)
    results_file.write(folder / RESULTS, results)
    return results


def _count_unreadable(measurements: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Returns the largest number of unreadable videos of each split, as a field of `splits`."""
    counts = [measurement.get("unreadable", {}) for measurement in measurements]
    return {"unreadable": {split: max(c.get(split, 0) for c in counts) for split in SPLITS}}


def _plan(evaluators, inputs, untrained, controls: bool):
    """Yields tuples (evaluator, inputs, key of the inputs). The key is None for the checkpoint."""
    for evaluator in evaluators:
        if not evaluator.is_baseline:
            yield evaluator, inputs, None
    if controls:
        for evaluator in sorted(evaluators, key=lambda evaluator: evaluator.is_baseline):
            yield evaluator, untrained, "random"


def _predictor_keys(encoder: FrozenEncoder, evaluators: Iterable[Evaluator]) -> dict[str, str]:
    """Returns the key of the predictor for those evaluators whose rows depend on it."""
    return {e.name: encoder.predictor_key for e in evaluators if registry.uses_predictor(e)}


def _options_of_rows(config) -> dict[str, Any]:
    """Returns the options that may affect the rows of an evaluator."""
    others = ("checkpoint", "ema", "steps", "evaluators", "controls")
    return {k: v for k, v in run_metadata.config_to_json(config).items() if k not in others}


def _measure(
    evaluator: Evaluator, inputs: EvalInputs, config: Any, scores_path: Path
) -> dict[str, Any]:
    """Runs an evaluator and returns its rows and the token statistics of the held-out videos.

    The statistics are missing if the evaluator did not use features. The scores of the videos are
    written to `scores_path`. The field "scores" of a row contains the file and the row number, and
    "neighbors" the file of the nearest training videos, if pooled features were used.
    """
    measured = evaluator.evaluate(inputs, config)
    for note in inputs.dataset.describe_videos():
        inputs.notes.add(note)
    data = {
        "notes": inputs.notes.pop_all(),
        "unreadable": {split: len(rows) for split, rows in inputs.dataset.unreadable.items()},
    }
    if jax.process_index() == 0:
        video_scores.write(scores_path, [row.scores for row in measured])
    rows, tokens = [row.to_json() for row in measured], {}
    for number, row in enumerate(rows):
        if measured[number].scores is not None:
            row["scores"] = {"file": f"{scores_path.parent.name}/{scores_path.name}", "row": number}
    if evaluator.is_baseline:
        return {"rows": rows, "tokens": {}, **data}
    if (statistics := inputs.token_statistics) is not None:
        tokens[inputs.name] = dataclasses.asdict(statistics)
    measurement = {"rows": rows, "tokens": tokens, **data}
    if inputs.name == "encoder" and (nearest := inputs.find_nearest_videos()) is not None:
        if jax.process_index() == 0:
            nearest_neighbors.write_nearest_videos(scores_path.with_name(NEIGHBORS), nearest)
        measurement["neighbors"] = f"{scores_path.parent.name}/{NEIGHBORS}"
    return measurement


def _cached(path: Path, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the contents of a cache file; calls `measure` if it has another key or is damaged."""
    found = results_file.read_cache(path, key, path.parent.parent)
    if found is None:
        found = {"key": key, **measure()}
        results_file.write(path, found)
    return found
