"""Pretraining, either stage: `train(config, workdir)` checks, prepares, resumes and runs THE loop.

The loop knows nothing of the stages: each is a module that gives a model, frozen parameters and a
loss (see `stage1.py`). Killed at any moment, the same call goes on bit by bit where it was.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from invnext_jax import pretrained, stage1, stage2
from invnext_jax.data import drops as drops_lib
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError
from invnext_jax.runtime import (
    checkpoint,
    checks,
    compilation,
    devices,
    distributed,
    metrics,
    optimizer,
    profiling,
    provenance,
)
from invnext_jax.runtime import mesh as mesh_lib
from invnext_jax.runtime import state as state_lib
from invnext_jax.runtime import step as step_lib
from invnext_jax.runtime.preemption import Preemption
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
    checkpointer: checkpoint.Checkpointer


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
    config = ml_collections.FrozenConfigDict(config)
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        run = prepare(config, workdir, stack)
        if run.step >= config.total_steps:
            _tell(f"{workdir} is finished: {run.step} steps are done")
        else:
            run_loop(run, preemption, stack)
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
    if config.stage not in STAGES:
        raise UserError(f"config.stage={config.stage!r} must be one of {', '.join(STAGES)}")
    stage = STAGES[config.stage]
    checks.check_config(config)
    stage.check_config(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    checks.check_batch(config, mesh)
    given, given_step = _read_source(config)

    drops = drops_lib.DropCounter.from_config(config.data)
    data_iter = _open_data(config, drops, stack)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        drops.list_in(workdir)
    checkpointer = checkpoint.Checkpointer(workdir, config, given_step)
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
        init_key = jax.random.fold_in(root_key, _INIT_STREAM)
        state = state_lib.init_state(init_fn, tx, abstract, init_key)
        start = stage.warm_start(config, given)
        state = state.replace(params=_start_from(config, start, state.params, abstract.params))
        state = state_lib.start_following(state, copies, ema)
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
    found, wanted = checkpoint.flat_shapes(given), checkpoint.flat_shapes(wanted)
    changed = checkpoint.compare_shapes(found, wanted)
    if changed:
        raise UserError(
            f"the parameters of config.init_from={config.init_from} do not fit this model; give a "
            "run of the same sizes:\n  " + "\n  ".join(changed)
        )


def _write_config(run: Run) -> None:
    if jax.process_index() == 0:
        partial = run.workdir / "config.json.tmp"
        partial.write_text(json.dumps(provenance.as_json(run.config), indent=2) + "\n")
        os.replace(partial, run.workdir / "config.json")


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


def _tell(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def run_loop(run: Run, preemption: Preemption, stack: contextlib.ExitStack) -> None:
    """Runs to the last step, or to the first boundary after a signal, and saves.

    Args:
        run: what `prepare` gave; its state is donated.
        preemption: asked between steps.
        stack: closes what is opened here.
    """
    config, log, total = run.config, run.config.log, run.config.total_steps
    throughput = devices.Throughput(
        run.stage.step_flops(config),
        list(run.mesh.devices.flat),
        config.dtype,
        measure=log.measure_ceiling,
    )
    reporter = metrics.Reporter(config, run.workdir, run.step, run.mesh, throughput)
    reporter.tell(throughput.describe())
    profiler = profiling.Profiler(config.profile_steps, run.workdir)
    stack.callback(profiler.close)
    stack.callback(reporter.close)
    first_batch = _next_batch(run, reporter)
    train_step, diagnose = _compile(run, first_batch)
    distributed.barrier("the first step")  # hosts compile at their own pace, collectives time out
    # The data iterator must stand exactly after the batches of the steps done when it is saved.
    batches = itertools.chain([first_batch], iter(lambda: _next_batch(run, reporter), None))
    reporter.start()
    saved_step = run.step
    while run.step < total and not preemption.requested:
        batch = next(batches)
        number = run.step + 1
        profiler.before(number)
        with jax.transfer_guard("disallow"):
            more = {}
            if metrics.is_due(number, log.diagnostics_every_steps):
                more = diagnose(run.state, run.frozen, batch, run.root_key)
                reporter.settle(more)
            run.state, measured = train_step(run.state, run.frozen, batch, run.root_key)
        run.step = number
        if profiler.after(number, measured):
            reporter.tell(f"trace of steps up to {number}: tensorboard --logdir={profiler.folder}")
        reporter.push(number, measured, more, run.drops.dropped)
        if number % config.checkpoint.every_steps == 0:
            reporter.drain()  # no logged step is missing from what a resumed run finds
            run.checkpointer.save(number, run.state, run.data_iter)
            saved_step = number
    reporter.drain()
    if run.step > saved_step:
        run.checkpointer.save(run.step, run.state, run.data_iter)
    run.checkpointer.wait()
    if summary := run.data_iter.summary():
        reporter.tell(summary)
    if run.step < total:
        reporter.tell(_farewell(run, preemption))


def _farewell(run: Run, preemption: Preemption) -> str:
    if not run.step:
        return f"{preemption.signal_name}: stopped before the first step"
    return (
        f"{preemption.signal_name}: stopped after step {run.step} of {run.config.total_steps}, "
        f"saved in {run.checkpointer.folder}; the same command goes on from there"
    )


def _next_batch(run: Run, reporter: metrics.Reporter) -> dict[str, jax.Array]:
    start = time.perf_counter()
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
    with mesh_lib.mesh_rules(run.mesh):
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
