"""Pretraining, either stage: `train(config, workdir)` checks, prepares, resumes and runs THE loop.

The loop knows nothing of the stages: each is a module that gives a model, frozen parameters and a
loss (see `stage1.py`). Killed at any moment, the same call goes on bit by bit where it was.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from invnext_jax import pretrained, stage1, stage2
from invnext_jax.data import drops as drops_lib
from invnext_jax.data import pipeline, sources
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.models import attention
from invnext_jax.runtime import (
    checkpoint,
    checks,
    compilation,
    devices,
    metrics,
    optimizer,
    profiling,
    provenance,
    together,
)
from invnext_jax.runtime import checkpointer as checkpointer_lib
from invnext_jax.runtime import mesh as mesh_lib
from invnext_jax.runtime import state as state_lib
from invnext_jax.runtime import step as step_lib
from invnext_jax.runtime.agreement import Agreement
from invnext_jax.runtime.preemption import Preemption, StopRequestedError
from invnext_jax.runtime.watchdog import COMPILE_FACTOR, Watchdog
from invnext_jax.runtime.workdir import Workdir
from invnext_jax.weights import export

STAGES = {"stage1": stage1, "stage2": stage2}
_INIT_STREAM = 2**32 - 1  # folded into the root key for initial values; no step has this number


@dataclasses.dataclass
class Run:
    """All that the loop needs; `state` and `step` change."""

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    stage: Any
    model: Any
    frozen: Any
    state: state_lib.TrainState
    step: int
    root_key: jax.Array
    data_iter: Iterator[dict[str, np.ndarray]]
    drops: drops_lib.DropCounter
    checkpointer: checkpointer_lib.Checkpointer
    position: Any  # in the data, after the batches of `step` steps


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Trains to the end, or until a signal asks to save and stop.

    Args:
        config: see `configs/common.py`.
        workdir: folder of the run: checkpoints, metrics.jsonl, config.json, TensorBoard events.

    Returns:
        The last logged record of metrics.jsonl.

    Raises:
        UserError: the config, its files or the workdir do not allow this run.
        NonFiniteError: more than `config.log.max_nonfinite_steps` steps in a row were skipped.
    """
    config = ml_collections.ConfigDict(config)
    with together.agreeing("the manifests"):
        config.data.manifest = sources.find_manifests(config.data.manifest)
    config = ml_collections.FrozenConfigDict(config)
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        watchdog = Watchdog(config.log.watchdog_minutes).start()
        stack.callback(watchdog.close)
        run = prepare(config, workdir, stack)
        if run.step >= config.total_steps:
            _tell(f"{workdir} is finished: {run.step} steps are done")
        else:
            run_loop(run, preemption, watchdog, stack)
    records = metrics.read_metrics(workdir)
    return records[-1] if records else {}


def prepare(
    config: ml_collections.FrozenConfigDict, workdir: pathlib.Path, stack: contextlib.ExitStack
) -> Run:
    """Checks the config and makes everything up to the state to start or go on from.

    Args:
        config: the run's config.
        workdir: its folder, made if need be.
        stack: closes the data workers and the checkpointer.

    Raises:
        UserError: see `train`.
    """
    with together.agreeing("the checks of the config"):
        if config.stage not in STAGES:
            raise UserError(f"config.stage={config.stage!r} must be one of {', '.join(STAGES)}")
        stage = STAGES[config.stage]
        checks.check_config(config)
        stage.check_config(config)
        mesh = mesh_lib.make_mesh(config.mesh)
        checks.check_batch(config, mesh)
    given, given_step = _read_source(config)

    drops = drops_lib.DropCounter.from_config(config.data)
    with together.agreeing("the opening of the data and of --workdir"):
        data_iter = _open_data(config, drops, stack)
        held = Workdir(workdir)
        stack.callback(held.close)
        if jax.process_index() == 0:
            drops.list_in(workdir)
    checkpointer = checkpointer_lib.Checkpointer(held, config, given_step)
    stack.callback(checkpointer.close)

    model = stage.make_model(config)
    init_fn = functools.partial(stage.init_params, config, model)
    tx, _ = make_optimizer(config, stage)
    copies, _ = stage.following(config)
    ema = config.ema.decay > 0
    abstract = state_lib.abstract_state(init_fn, tx, mesh, copies, ema)
    root_key = mesh_lib.make_root_key(config.seed, mesh)
    state = checkpointer.restore(abstract, data_iter)
    if state is None:
        with together.agreeing("the start of a new run"):
            _keep_old_records(workdir, checkpointer)
            start = stage.warm_start(config, given)
        init_key = jax.random.fold_in(root_key, _INIT_STREAM)
        state = state_lib.init_state(init_fn, tx, abstract, init_key)
        state = state.replace(params=_start_from(config, start, state.params, abstract.params))
        state = state_lib.start_following(state, copies, ema)
    with together.agreeing("the frozen parameters"):
        frozen = stage.init_frozen(config, given)
        abstract_frozen = mesh_lib.abstract_arrays(stage.abstract_frozen(config), mesh)
        _check_fit(config, frozen, abstract_frozen)
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        stage=stage,
        model=model,
        frozen=mesh_lib.put_tree(frozen, abstract_frozen),
        state=state,
        step=int(state.step),
        root_key=root_key,
        data_iter=data_iter,
        drops=drops,
        checkpointer=checkpointer,
        position=data_iter.get_state(),
    )
    _write_config(run)
    _introduce(run)
    return run


def _open_data(
    config: ml_collections.FrozenConfigDict,
    drops: drops_lib.DropCounter,
    stack: contextlib.ExitStack,
) -> Iterator[dict[str, np.ndarray]]:
    dataset = pipeline.make_train_dataset(
        config.data,
        seed=config.seed,
        batch_size=config.batch_size // jax.process_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        drops=drops,
    )
    _tell(dataset.describe(config.total_steps))
    data_iter = iter(dataset)
    stack.callback(data_iter.close)
    return data_iter


def _read_source(config: ml_collections.FrozenConfigDict) -> tuple[Any, int | None]:
    """Parameters and step of the run, or of the export, that `config.init_from` names, if any."""
    if not config.init_from:
        return None, None
    if pathlib.Path(config.init_from).suffix != ".safetensors":
        params, source, step = checkpoint.restore_run(config.init_from)
        checks.check_source(config, source, step)
        return params, step
    with together.agreeing(f"the export {config.init_from}"):
        params, about = export.read_export(config.init_from)
        checks.check_source(config, provenance.from_json(about.get("config", {})), None)
    return params, about.get("source", {}).get("step")


def make_optimizer(config: ml_collections.FrozenConfigDict, stage: Any) -> tuple[Any, Callable]:
    """The optimiser and its schedule; it leaves alone what no loss of the stage reaches."""
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    tx = optimizer.make_optimizer(config.optimizer, schedule, stage.untrained(config))
    return tx, schedule


def _start_from(
    config: ml_collections.FrozenConfigDict, start: dict[str, Any], params: Any, abstract: Any
) -> Any:
    """Puts the subtrees of `start`, by their path, in place of the initial values, each whole."""
    wanted = {path: state_lib.get_subtree(abstract, path) for path in start}
    _check_fit(config, start, wanted)
    for path, tree in start.items():
        if "/" not in path:
            leaves = jax.tree.leaves(tree)
            size = f"{len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} values"
            _tell(f"taken from {config.init_from}: {path} ({size})")
    for sentence in pretrained.describe_start(config, start, abstract):
        _tell(sentence)
    for path, tree in mesh_lib.put_tree(start, wanted).items():
        params = state_lib.replace_subtree(params, path, tree)
    return params


def _check_fit(config: ml_collections.FrozenConfigDict, given: Any, wanted: Any) -> None:
    changed = state_lib.compare_shapes(state_lib.flat_shapes(given), state_lib.flat_shapes(wanted))
    if changed:
        raise UserError(
            f"the parameters of config.init_from={config.init_from} do not fit this model; give a "
            "run of the same sizes:\n  " + "\n  ".join(changed)
        )


def _keep_old_records(workdir: pathlib.Path, checkpointer: checkpointer_lib.Checkpointer) -> None:
    """Without a checkpoint, records are of a run whose checkpoints are gone, or that made none."""
    path = workdir / metrics.FILE
    if jax.process_index() != 0 or not path.exists() or not path.stat().st_size:
        return
    try:
        changed = checkpointer.changed_fields(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        changed = []  # nothing to compare with
    if changed:
        raise UserError(
            f"{workdir} has no checkpoint, and its records are of another config; choose another "
            "--workdir, or restore these values:\n  " + "\n  ".join(changed)
        )
    try:
        kept = metrics.set_aside(workdir)
    except OSError as error:
        raise UserError(f"{path} cannot be renamed: {error.strerror}; move it away") from error
    _tell(f"no checkpoint: starts at step 0; the records that lay in {workdir} are kept as {kept}")


def _write_config(run: Run) -> None:
    if jax.process_index() == 0:
        partial = run.workdir / "config.json.tmp"
        try:
            partial.write_text(json.dumps(provenance.as_json(run.config), indent=2) + "\n")
            os.replace(partial, run.workdir / "config.json")
        except OSError as error:  # each checkpoint has the config too
            logging.warning("%s cannot be written: %s", partial, error.strerror)


def _introduce(run: Run) -> None:
    def size(tree: Any) -> str:
        return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M"

    axes = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items() if size > 1)
    devices = f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}"
    _tell(
        f"{run.config.stage} {run.config.variant}: {size(run.state.params)} parameters, "
        f"{size(run.frozen)} frozen; batch {run.config.batch_size} on {devices}"
        + (f" ({axes})" if axes else "")
    )
    if run.step:
        _tell(f"going on after step {run.step}, from {run.checkpointer.folder / str(run.step)}")
    if run.checkpointer.mark:
        _tell(f"this checkpoint was made when the run was aborted: {run.checkpointer.mark}")


def _tell(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def run_loop(
    run: Run, preemption: Preemption, watchdog: Watchdog, stack: contextlib.ExitStack
) -> None:
    """Runs to the last step, or to the first boundary after a signal, and saves.

    Args:
        run: what `prepare` gave; its state is donated.
        preemption: asked between steps.
        watchdog: told what begins.
        stack: closes what is opened here.
    """
    config, saving = run.config, run.config.checkpoint
    throughput = devices.Throughput(
        run.stage.step_flops(config),
        list(run.mesh.devices.flat),
        config.dtype,
        measure=config.log.measure_ceiling,
    )
    best_metric = saving.best_metric if saving.keep_best else ""
    with together.agreeing("the records"):
        reporter = metrics.Reporter(
            config, run.workdir, run.step, run.mesh, best_metric, throughput
        )
    reporter.tell(throughput.describe())
    profiler = profiling.Profiler(config.profile_steps, run.workdir)
    stack.callback(profiler.close)
    stack.callback(reporter.close)
    agreement = Agreement(preemption, saving.every_minutes, run.mesh)
    try:
        with contextlib.suppress(StopRequestedError):
            _run_steps(run, reporter, agreement, preemption, watchdog, profiler)
        reporter.drain()
    except NonFiniteError as error:
        with contextlib.suppress(NonFiniteError):  # the step after, which was under way
            reporter.drain()
        if not run.checkpointer.mark:  # a second one would push out what was saved before it
            run.checkpointer.save(run.step, run.state, run.position, mark=str(error))
        raise
    if run.step:
        run.checkpointer.finish(run.step, run.state, run.position, reporter.take_score())
    if summary := run.data_iter.summary():
        reporter.tell(summary)
    if run.step < run.config.total_steps:
        reporter.tell(_farewell(run, preemption))


def _run_steps(
    run: Run,
    reporter: metrics.Reporter,
    agreement: Agreement,
    preemption: Preemption,
    watchdog: Watchdog,
    profiler: profiling.Profiler,
) -> None:
    every_steps = run.config.checkpoint.every_steps
    with together.agreeing("the first batch"):
        batch = _next_batch(run, reporter, preemption)
    # Hosts compile at their own pace, and the collectives of a step do not wait for long.
    longest = max(together.WAIT_SECONDS, 60 * COMPILE_FACTOR * run.config.log.watchdog_minutes)
    with together.agreeing("the first step", timeout_seconds=longest):
        train_step, diagnose = _compile(run, batch)
    reporter.start()
    agreement.saved()
    while run.step < run.config.total_steps and not (wish := agreement.look(run.step)).stop:
        watchdog.beat(run.step, "a save")
        if wish.save:
            _save(run, reporter, agreement)
        watchdog.beat(run.step, "the wait for data")
        batch = batch or _next_batch(run, reporter, preemption)
        watchdog.beat(run.step, "the step")
        number, more = run.step + 1, {}
        profiler.before(number)
        with jax.transfer_guard("disallow"):
            if metrics.is_due(number, run.config.log.diagnostics_every_steps):
                more = diagnose(run.state, run.frozen, batch, run.root_key)
                reporter.settle(more)
            run.state, measured = train_step(run.state, run.frozen, batch, run.root_key)
        batch = None
        # The position saved is that after the batches of the steps done, not of one waited for.
        run.step, run.position = number, run.data_iter.get_state()
        if profiler.after(number, measured):
            reporter.tell(f"trace of steps up to {number}: tensorboard --logdir={profiler.folder}")
        reporter.push(number, measured, more, run.drops.dropped)
        watchdog.beat(run.step, "a save")
        if number % every_steps == 0:
            _save(run, reporter, agreement)


def _save(run: Run, reporter: metrics.Reporter, agreement: Agreement) -> None:
    reporter.drain()  # no logged step is missing from what a resumed run finds
    run.checkpointer.save(run.step, run.state, run.position, score=reporter.take_score())
    if not (run.workdir / "config.json").exists():
        _write_config(run)
    agreement.saved()


def _farewell(run: Run, preemption: Preemption) -> str:
    if not run.step:
        return f"{preemption.signal_name}: stopped before the first step"
    return (
        f"{preemption.signal_name}: stopped after step {run.step} of {run.config.total_steps}, "
        f"saved in {run.checkpointer.folder}; the same command goes on from there"
    )


def _next_batch(
    run: Run, reporter: metrics.Reporter, preemption: Preemption
) -> dict[str, jax.Array]:
    """The next batch; a single process does not wait for it once a signal has come."""
    start = time.perf_counter()
    with preemption.waiting() if jax.process_count() == 1 else contextlib.nullcontext():
        batch = next(run.data_iter)
    reporter.waited(time.perf_counter() - start)
    return mesh_lib.put_batch(batch, run.mesh)


def _compile(run: Run, batch: dict[str, jax.Array]) -> tuple[step_lib.StepFn, Callable]:
    """Compiles step and diagnostics; later calls of other shapes fail instead of compiling."""
    config, arguments = run.config, (run.state, run.frozen, batch, run.root_key)
    tx, schedule = make_optimizer(config, run.stage)
    loss_fn = functools.partial(run.stage.loss_fn, config, run.model)
    diagnostics = functools.partial(run.stage.diagnostics, config, run.model)
    start, diagnose = time.perf_counter(), None
    with mesh_lib.mesh_rules(run.mesh), attention.kernel(config.attention):
        train_step = step_lib.make_train_step(
            loss_fn,
            tx,
            schedule,
            run.stage.following(config),
            accumulate=config.accumulate,
            ema_decay=config.ema.decay,
        )
        train_step = compilation.compile_step(train_step, *arguments)
        if config.log.diagnostics_every_steps:
            diagnose = compilation.compile_diagnostics(diagnostics, *arguments, config.accumulate)
    cache = jax.config.jax_compilation_cache_dir
    kept = f", kept in {cache}" if cache else ""
    _tell(f"compiled in {time.perf_counter() - start:.1f} s{kept}")
    return train_step, diagnose
