"""THE loop: steps, saves and logs until the end or a signal; it knows nothing of the stages."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from invnext_jax import atomic_file
from invnext_jax.checkpointing import manager as manager_lib
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import NonFiniteError
from invnext_jax.monitoring import profiling
from invnext_jax.monitoring import reporter as reporter_lib
from invnext_jax.monitoring import throughput as throughput_lib
from invnext_jax.monitoring.watchdog import COMPILE_FACTOR, Watchdog
from invnext_jax.multihost import consensus
from invnext_jax.multihost.distributed import log_on_process_0
from invnext_jax.multihost.preemption import Preemption, StopRequestedError
from invnext_jax.multihost.stop_and_save import StopAndSave
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib


@dataclasses.dataclass
class Run:
    """All that the loop needs; `state` and `step` change."""

    training: registry.TrainingSetup
    workdir: pathlib.Path
    mesh: Mesh
    frozen: Any
    state: state_lib.TrainState
    step: int
    root_key: jax.Array
    data_iter: Iterator[dict[str, np.ndarray]]
    checkpointer: manager_lib.Checkpointer
    position: Any  # in the data, after the batches of `step` steps

    @property
    def config(self) -> ml_collections.FrozenConfigDict:
        """The run's config."""
        return self.training.config

    def write_config(self) -> None:
        """Writes config.json into the workdir."""
        if jax.process_index() == 0:
            path, tree = self.workdir / "config.json", run_metadata.config_to_json(self.config)
            try:
                atomic_file.write_text(path, json.dumps(tree, indent=2) + "\n")
            except OSError as error:  # each checkpoint has the config too
                logging.warning("%s cannot be written: %s", path, error.strerror)


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
    throughput = throughput_lib.Throughput(
        registry.step_flops(config),
        list(run.mesh.devices.flat),
        config.dtype,
        measure=config.log.measure_ceiling,
    )
    best_metric = saving.best_metric if saving.keep_best else ""
    with consensus.all_hosts_agree("the records"):
        reporter = reporter_lib.Reporter(
            config, run.workdir, run.step, run.mesh, best_metric, throughput
        )
    reporter.log(throughput.describe())
    profiler = profiling.Profiler(config.profile_steps, run.workdir)
    stack.callback(profiler.close)
    stack.callback(reporter.close)
    stop_and_save = StopAndSave(preemption, saving.every_minutes, run.mesh)
    try:
        with contextlib.suppress(StopRequestedError):
            _run_steps(run, reporter, stop_and_save, preemption, watchdog, profiler)
        reporter.flush()
    except NonFiniteError as error:
        with contextlib.suppress(NonFiniteError):  # the step after, which was under way
            reporter.flush()
        if (
            not run.checkpointer.abort_reason
        ):  # a second one would push out what was saved before it
            run.checkpointer.save(run.step, run.state, run.position, abort_reason=str(error))
        raise
    if run.step:
        run.checkpointer.finish(run.step, run.state, run.position, reporter.pop_score())
    if summary := run.data_iter.summary():
        reporter.log(summary)
    if run.step < run.config.total_steps:
        reporter.log(_farewell(run, preemption))


def _run_steps(
    run: Run,
    reporter: reporter_lib.Reporter,
    stop_and_save: StopAndSave,
    preemption: Preemption,
    watchdog: Watchdog,
    profiler: profiling.Profiler,
) -> None:
    every_steps = run.config.checkpoint.every_steps
    with consensus.all_hosts_agree("the first batch"):
        batch = _next_batch(run, reporter, preemption)
    # Hosts compile at their own pace, and the collectives of a step do not wait for long.
    longest = max(consensus.WAIT_SECONDS, 60 * COMPILE_FACTOR * run.config.log.watchdog_minutes)
    with consensus.all_hosts_agree("the first step", timeout_seconds=longest):
        train_step, diagnose = _compile(run, batch)
    reporter.start()
    stop_and_save.reset_timer(run.step)
    while run.step < run.config.total_steps and not (flags := stop_and_save.poll(run.step)).stop:
        watchdog.heartbeat(run.step, "a save")
        if flags.save:
            _save(run, reporter, stop_and_save)
        watchdog.heartbeat(run.step, "the wait for data")
        batch = batch or _next_batch(run, reporter, preemption)
        watchdog.heartbeat(run.step, "the step")
        number, more = run.step + 1, {}
        profiler.start_if_due(number)
        with jax.transfer_guard("disallow"):
            if reporter_lib.is_due(number, run.config.log.diagnostics_every_steps):
                more = diagnose(run.state, run.frozen, batch, run.root_key)
                reporter.wait_if_serial(more)
            run.state, measured = train_step(run.state, run.frozen, batch, run.root_key)
        batch = None
        # The position saved is that after the batches of the steps done, not of one waited for.
        run.step, run.position = number, run.data_iter.get_state()
        if profiler.stop_if_due(number, measured):
            reporter.log(f"trace of steps up to {number}: tensorboard --logdir={profiler.folder}")
        reporter.add_step(number, measured, more, {"dropped_videos": run.data_iter.dropped})
        watchdog.heartbeat(run.step, "a save")
        if number % every_steps == 0:
            _save(run, reporter, stop_and_save)


def _save(run: Run, reporter: reporter_lib.Reporter, stop_and_save: StopAndSave) -> None:
    reporter.flush()  # no logged step is missing from what a resumed run finds
    run.checkpointer.save(run.step, run.state, run.position, score=reporter.pop_score())
    if not (run.workdir / "config.json").exists():
        run.write_config()
    stop_and_save.reset_timer(run.step)


def _farewell(run: Run, preemption: Preemption) -> str:
    if not run.step:
        return f"{preemption.signal_name}: stopped before the first step"
    return (
        f"{preemption.signal_name}: stopped after step {run.step} of {run.config.total_steps}, "
        f"saved in {run.checkpointer.folder}; the same command goes on from there"
    )


def _next_batch(
    run: Run, reporter: reporter_lib.Reporter, preemption: Preemption
) -> dict[str, jax.Array]:
    """The next batch; a single process does not wait for it once a signal has come."""
    start = time.perf_counter()
    with preemption.raise_on_signal() if jax.process_count() == 1 else contextlib.nullcontext():
        batch = next(run.data_iter)
    reporter.add_data_wait(time.perf_counter() - start)
    return mesh_lib.shard_batch(batch, run.mesh)


def _compile(
    run: Run, batch: dict[str, jax.Array]
) -> tuple[step_lib.StepFn, step_lib.DiagnosticsFn | None]:
    """Compiles step and diagnostics; later calls of other shapes fail instead of compiling."""
    start, diagnose = time.perf_counter(), None
    arguments = run.mesh, run.state, run.frozen, batch, run.root_key
    train_step = run.training.compile_step(*arguments)
    if run.config.log.diagnostics_every_steps:
        diagnose = run.training.compile_diagnostics(*arguments)
    cache = jax.config.jax_compilation_cache_dir
    kept = f", kept in {cache}" if cache else ""
    log_on_process_0(f"compiled in {time.perf_counter() - start:.1f} s{kept}")
    return train_step, diagnose
