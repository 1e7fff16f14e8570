"""Pretraining: `train(config, workdir)` checks the config, creates or restores a run, and trains.

The same call resumes a run that was killed. The results are bitwise identical.
"""

import contextlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from invnext_jax import config_checks, init_source, loop, online_evaluation, start_log
from invnext_jax.checkpointing import (
    evaluated_videos,
    frozen_hashes,
    reader,
    run_metadata,
    source_videos,
    storage,
    video_digests,
)
from invnext_jax.checkpointing import manager as manager_lib
from invnext_jax.checkpointing.workdir import Records, open_workdir
from invnext_jax.data import manifest, pipeline
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.monitoring import evaluation_metrics, metrics_file, parameter_table, profiling
from invnext_jax.monitoring.strips_process import CheckpointStrips
from invnext_jax.monitoring.watchdog import Watchdog
from invnext_jax.multihost import consensus
from invnext_jax.multihost.distributed import count_sharing_processes, log_on_process_0
from invnext_jax.multihost.stop_and_save import Preemption
from invnext_jax.stages import image_teacher, initialization, registry, teacher_cache
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import mesh_checks
from invnext_jax.training import recipe as recipe_lib
from invnext_jax.training import state as state_lib

_INIT_STREAM = 2**32 - 1  # folded into the key of the initial values; larger than any step number


def train(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains to the last step or until a signal arrives, and saves the run.

    Args:
      config: the run's config; `configs/common.py` documents its fields.
      workdir: the run's folder, for checkpoints, metrics, config.json and TensorBoard events. A
          local path, or `gs://BUCKET/FOLDER`.
      overrides: dotted names of the options that were set on the command line, without "config".
          It is an error if one of them has no effect.

    Returns:
      The last logged record of metrics.jsonl.

    Raises:
      UserError: the config, a file in the config, or the workdir is invalid for this run.
      NonFiniteError: more than `log.max_nonfinite_steps` consecutive steps or all were skipped.
    """
    workdir = storage.open_path("--workdir", workdir)
    with consensus.all_hosts_agree("the manifests and the sizes of config.init_from"):
        config = init_source.copy_sizes(config, overrides)
        config.data.manifest = manifest.find_manifests(config.data.manifest)
    config = ml_collections.FrozenConfigDict(config)
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        watchdog = Watchdog(config.log.watchdog_minutes).start()
        stack.callback(watchdog.close)
        run = prepare(config, workdir, stack, overrides)
        if run.step > run.config.total_steps:
            log_on_process_0(
                f"{workdir} already has {run.step} steps, and config.total_steps="
                f"{run.config.total_steps}: there is nothing to do"
            )
        elif run.step == run.config.total_steps:
            log_on_process_0(f"{workdir} is finished: {run.step} steps are done")
        else:
            loop.run_loop(run, preemption, watchdog, stack)
    records = metrics_file.read_metrics(run.records.folder)
    finished = run.step >= run.config.total_steps
    if finished and (change := evaluation_metrics.describe_change(records)):
        log_on_process_0(change)
    if run.step and int(run.state.skipped) == run.step:
        raise NonFiniteError(
            f"loss or gradient was not finite in all {run.step} steps: check the changed options"
        )
    return records[-1] if records else {}


def prepare(
    config: ml_collections.FrozenConfigDict,
    workdir: storage.Path,
    stack: contextlib.ExitStack,
    overrides: Sequence[str] = (),
) -> loop.Run:
    """Checks the config and builds the run with an initial or a restored state.

    Args:
      config: the run's config.
      workdir: the run's folder, which is created if it does not exist.
      stack: the exit stack on which the data workers and the checkpointer are closed.
      overrides: see `train`.

    Raises:
      UserError: the config, a file or the workdir is invalid, as in `train`.
    """
    with consensus.all_hosts_agree("the config checks"):
        stage = registry.find_stage(config)
        config_checks.check_config(config)
        stage.check_config(config)
        unused = config_checks.unused_options(config, stage)
        config_checks.check_overrides(config, overrides, unused)
        mesh = mesh_checks.make_checked_mesh(config)
    source = init_source.read_source(config)

    bad_videos = BadVideoTracker.from_config(config.data)
    with consensus.all_hosts_agree("opening the data and --workdir"):
        dataset = _make_dataset(config, mesh, bad_videos)
        config, recipe = _resolve_recipe(config, workdir, dataset.videos)
        unused = dataset.unused_options() | profiling.unused_options(config)
        config_checks.check_overrides(config, overrides, unused)
        log_on_process_0(dataset.describe(config.total_steps))
        data_iter = iter(dataset)
        stack.callback(data_iter.close)
        locked_workdir = open_workdir(workdir)
        stack.callback(locked_workdir.close)
        records = Records(workdir)
        stack.callback(records.copy)
        bad_videos.write_quarantine(records.folder)
        evaluated = online_evaluation.read_manifest(config)
        if jax.process_index() == 0:
            for note in source_videos.describe_held_out(config, dataset.manifest, evaluated):
                log_on_process_0(note)
    with consensus.all_hosts_agree("the frozen parameters"):
        frozen = stage.init_frozen(config, source.params)
        initialization.check_fit(config, frozen, mesh_lib.unbox(stage.abstract_frozen(config)))
        hashes = frozen_hashes.hash_groups(frozen), init_source.hash_groups(config, source)
    record = _describe_run(config, dataset, evaluated, source.step, hashes)
    checkpointer = manager_lib.Checkpointer(locked_workdir, config, record)
    stack.callback(checkpointer.close)
    strips = CheckpointStrips(config.log.strips, workdir, records.folder)
    stack.callback(strips.close)

    training = registry.make_setup(config)
    abstract = training.abstract_state(mesh)
    root_key = mesh_lib.make_root_key(config.seed, mesh)
    state = checkpointer.restore(abstract, data_iter)
    if state is None:
        with consensus.all_hosts_agree("the start of a new run"):
            _keep_old_records(records.folder, checkpointer)
            start = stage.warm_start(config, source.params)
            unused = initialization.unused_options(config, start)
            config_checks.check_overrides(config, overrides, unused)
        init_key = jax.random.fold_in(root_key, _INIT_STREAM)
        state = state_lib.init_state(training.init_fn, training.tx, abstract, init_key)
        params = _start_from(config, source, start, state.params, abstract.params)
        state = state.replace(params=params)
        state = state_lib.init_ema(state, training.ema_targets, config.ema.decay > 0)
    evaluation = None
    if config.eval.every_steps and int(state.step) < config.total_steps:
        since = evaluated_videos.since_step(checkpointer.record)
        arguments = config, mesh, state.params["encoder"], dataset.manifest, evaluated, since
        evaluation = online_evaluation.OnlineEvaluation(*arguments)
    run = loop.Run(
        training=training,
        recipe=recipe,
        records=records,
        mesh=mesh,
        frozen=mesh_lib.shard_tree(frozen, training.abstract_frozen(mesh)),
        state=state,
        step=int(state.step),
        root_key=root_key,
        schedule=training.make_schedule(mesh),
        data_iter=data_iter,
        checkpointer=checkpointer,
        position=data_iter.get_state(),
        strips=strips,
        online_evaluation=evaluation,
    )
    if run.step < run.config.total_steps:
        run.records.write_config(run.config, run.recipe)
        parameter_table.report_parameters(
            records.folder, run.state.params, run.frozen, training.untrained_groups
        )
        start_log.log_start(run)
        run.data_iter = teacher_cache.open_cache(run, dataset.videos, stack)
    return run


def _describe_run(
    config: ml_collections.FrozenConfigDict,
    dataset: Any,
    evaluated: manifest.Manifest | None,
    step: int | None,
    hashes: tuple[dict[str, str], dict[str, str]],
) -> dict[str, Any]:
    """Checks that all processes have the same metadata as process 0, and returns it.

    `evaluated` is the result of `online_evaluation.read_manifest`; `step` and `hashes` are
    `init_from_step`, `frozen_sha256` and `init_from_sha256` of `run_metadata.describe_run`.
    """
    with consensus.all_hosts_agree("reading the manifests") as broadcast:
        digest = manifest.hash_manifests(config.data.manifest)
        videos = video_digests.sample_digests(dataset.manifest, config.data.clip_seconds)
        evaluation = evaluated_videos.identify(config, evaluated)
        record = run_metadata.describe_run(config, digest, step, *hashes, videos, evaluation)
        broadcast.value = own = {**record, "init_from_step": None}
    with consensus.all_hosts_agree("comparing configs"):
        if changed := run_metadata.config_differences(
            broadcast.value, own, run_metadata.PER_HOST_FIELDS
        ):
            raise UserError(
                "config or manifest differs from that of process 0. Use the same for all:",
                *changed,
            )
        video_digests.check_hosts(broadcast.value, own)
        evaluated_videos.check_hosts(broadcast.value, own)
    for describe in (video_digests.describe_unreadable, video_digests.describe_copies):
        if warning := describe(record):
            log_on_process_0(warning)
    return record


def _resolve_recipe(
    config: ml_collections.FrozenConfigDict, workdir: storage.Path, videos: int
) -> tuple[ml_collections.FrozenConfigDict, recipe_lib.Recipe]:
    """Returns the config with steps and rates as numbers, and the recipe."""
    saved = reader.read_config(workdir)
    config = image_teacher.resolve_quantization(config, saved, jax.devices()[0])
    config, kept = recipe_lib.keep_saved(config, saved) if saved else (config, {})
    if kept:
        log_on_process_0(f"an older version started {workdir}; its numbers are kept: {kept}")
    return recipe_lib.resolve_config(config, videos)


def _make_dataset(
    config: ml_collections.FrozenConfigDict, mesh: jax.sharding.Mesh, bad_videos: BadVideoTracker
) -> Any:
    return pipeline.make_train_dataset(
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        positions=mesh_lib.batch_positions(mesh, config.batch_size),
        bad_videos=bad_videos,
        processes=count_sharing_processes(),
    )


def _start_from(
    config: ml_collections.FrozenConfigDict,
    source: init_source.Source,
    start: dict[str, Any],
    params: Any,
    abstract: Any,
) -> Any:
    """Replaces subtrees of the initial parameters with those in `start`, a dict by path."""
    expected = {path: state_lib.get_subtree(abstract, path) for path in start}
    initialization.check_fit(config, start, expected)
    for path, tree in start.items():
        if "/" not in path:
            leaves = jax.tree.leaves(tree)
            size = f"{len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} values"
            log_on_process_0(f"taken from {config.init_from}: {path} ({size})")
    for sentence in initialization.describe_start(config, start, abstract, source.config):
        log_on_process_0(sentence)
    for path, tree in mesh_lib.shard_tree(start, expected).items():
        params = state_lib.replace_subtree(params, path, tree)
    return params


def _keep_old_records(workdir: pathlib.Path, checkpointer: manager_lib.Checkpointer) -> None:
    """Renames the metrics of an earlier run in the workdir if it has no checkpoint.

    Raises:
      UserError: the earlier run had a different config.
    """
    path = workdir / metrics_file.FILE
    if jax.process_index() != 0 or not path.exists() or not path.stat().st_size:
        return
    try:
        changed = checkpointer.changed_fields(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        changed = []  # there is no config to compare
    if changed:
        raise UserError(
            f"{workdir} has metrics of a run with a different config and no checkpoint. Use "
            "a different --workdir, or restore these values:",
            *changed,
        )
    try:
        kept = metrics_file.rename_metrics_file(workdir)
    except OSError as error:
        raise UserError(f"{path} cannot be renamed ({error.strerror}): move it away") from error
    log_on_process_0(
        f"No checkpoint exists; the run starts from step 0. Earlier metrics are kept as {kept}."
    )
