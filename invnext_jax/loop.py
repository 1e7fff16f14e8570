"""The training loop, and pretraining with checkpoints, logs and stop signals.

`run_steps` is the only training loop in the package. It is used for pretraining, for the synthetic
world's teacher, for the supervised baseline and for heads on frozen features.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from invnext_jax.checkpointing import aborted_runs
from invnext_jax.checkpointing import manager as manager_lib
from invnext_jax.checkpointing.workdir import Records
from invnext_jax.errors import NonFiniteError
from invnext_jax.monitoring import reporter as reporter_lib
from invnext_jax.monitoring import throughput as throughput_lib
from invnext_jax.monitoring.profiling import Profiler
from invnext_jax.monitoring.strips_process import CheckpointStrips
from invnext_jax.monitoring.watchdog import COMPILE_FACTOR, Watchdog
from invnext_jax.multihost import consensus
from invnext_jax.multihost.distributed import log_on_process_0
from invnext_jax.multihost.stop_and_save import Preemption, StopAndSave, StopRequestedError
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import optimizer
from invnext_jax.training import recipe as recipe_lib
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib


class Callbacks:
    """Hooks that `run_steps` calls. By default they do nothing."""

    def should_stop(self, step: int) -> bool:
        """Returns whether to stop after `step` steps. Called before each batch is read."""
        del step
        return False

    def before_step(self, number: int) -> None:
        """Called when the batch of step `number` is available. Steps are numbered from 1."""

    def diagnose(self, number: int, state: Any, batch: Any) -> dict[str, jax.Array]:
        """Returns diagnostics of the state before step `number`, or {} if there are none."""
        del number, state, batch
        return {}

    def after_step(
        self, number: int, state: Any, metrics: Any, diagnostics: dict[str, jax.Array]
    ) -> None:
        """Called with the output of step `number`, which may still be computing on the devices."""


def run_steps(
    train_step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batches: Iterator[Any],
    *,
    total_steps: int,
    first_step: int = 0,
    callbacks: Callbacks,
) -> Any:
    """Trains to the last step, or until `callbacks.should_stop` returns True.

    Args:
      train_step: function (state, batch) -> (state, metrics). It may donate the state.
      state: the state after `first_step` steps.
      batches: the batches of the next steps, as arrays on the devices.
      total_steps: number of the last step.
      first_step: number of steps done so far.
      callbacks: hooks called around each step.

    Returns:
      The final state.
    """
    step = first_step
    while step < total_steps and not callbacks.should_stop(step):
        batch = next(batches)
        step += 1
        callbacks.before_step(step)
        # An implicit transfer would stall the devices in every step.
        with jax.transfer_guard("disallow"):
            diagnostics = callbacks.diagnose(step, state, batch)
            state, metrics = train_step(state, batch)
        del batch  # frees its memory while the next batch is read
        callbacks.after_step(step, state, metrics, diagnostics)
    return state


@dataclasses.dataclass
class Run:
    """A pretraining run.

    Attributes:
      records: the run's records, such as its metrics.
      step: number of steps done so far. It is updated together with `state` and `position`.
      root_key: the key from which the key of each step is derived.
      schedule: the learning-rate schedule, on the devices.
      data_iter: iterator over host batches.
      position: state of `data_iter` after the batches of the first `step` steps.
      strips: writes clips of checkpoints to TensorBoard.
      online_evaluation: evaluates the encoder during the run; None for no evaluation.
    """

    training: registry.TrainingSetup
    recipe: recipe_lib.Recipe
    records: Records
    mesh: Mesh
    frozen: Any
    state: state_lib.TrainState
    step: int
    root_key: jax.Array
    schedule: optimizer.Schedule
    data_iter: Iterator[dict[str, np.ndarray]]
    checkpointer: manager_lib.Checkpointer
    position: Any
    strips: CheckpointStrips
    online_evaluation: Any = None

    @property
    def config(self) -> ml_collections.FrozenConfigDict:
        """The run's config."""
        return self.training.config

    @property
    def workdir(self) -> pathlib.Path:
        """The local folder of the run's records."""
        return self.records.folder


def run_loop(
    run: Run, preemption: Preemption, watchdog: Watchdog, stack: contextlib.ExitStack
) -> None:
    """Trains a run to its last step or until a signal arrives, and saves a checkpoint.

    Args:
      run: the output of `train.prepare`. Its state is donated.
      preemption: the object that receives the signals.
      watchdog: the watchdog, which receives a heartbeat before each phase of a step.
      stack: the exit stack on which the reporter and the profiler are closed.
    """
    config, saving, total_steps = run.config, run.config.checkpoint, run.config.total_steps
    flops, devices = registry.split_step_flops(config), list(run.mesh.devices.flat)
    throughput = throughput_lib.Throughput(flops, devices, measure=config.log.measure_ceiling)
    best_metric = saving.best_metric if saving.keep_best else ""
    with consensus.all_hosts_agree("the records"):
        arguments = run.workdir, run.step, run.mesh, best_metric, throughput
        rare = run.online_evaluation.metrics if run.online_evaluation else ()
        reporter = reporter_lib.Reporter(config, *arguments, run.data_iter.describe_wait, rare)
    reporter.log(throughput.describe())
    profiler = Profiler(config.profile_steps, run.workdir) if config.profile_steps else None
    if profiler:
        stack.callback(profiler.close)
    stack.callback(reporter.close)
    stop_and_save = StopAndSave(preemption, saving.every_minutes, run.mesh)
    try:
        with contextlib.suppress(StopRequestedError):
            _train(run, reporter, stop_and_save, preemption, watchdog, profiler)
        reporter.flush()
    except NonFiniteError as error:
        with contextlib.suppress(NonFiniteError):  # raised for the step that was already dispatched
            reporter.flush()
        # A save after a second abort would replace the checkpoint of the first abort.
        if not run.checkpointer.abort_reason:
            run.checkpointer.save(run.step, run.state, run.position, abort_reason=str(error))
        advice = aborted_runs.describe_restart(run.checkpointer.folder)
        raise NonFiniteError(f"{error}. {advice}") from None
    run.records.copy()
    if run.step:
        run.checkpointer.finish(run.step, run.state, run.position, reporter.pop_score())
    if summary := run.data_iter.summary():
        reporter.log(summary)
    if run.step < total_steps:
        reporter.log(preemption.describe_stop(run.step, total_steps, run.checkpointer.folder))
    else:
        run.strips.finish(run.step)


def _train(
    run: Run,
    reporter: reporter_lib.Reporter,
    stop_and_save: StopAndSave,
    preemption: Preemption,
    watchdog: Watchdog,
    profiler: Profiler | None,
) -> None:
    with consensus.all_hosts_agree("the first batch"):
        pending = [_next_batch(run, reporter, preemption)]
    # The compile times of two hosts may differ by more than the time limit of a collective.
    timeout = max(consensus.WAIT_SECONDS, 60 * COMPILE_FACTOR * run.config.log.watchdog_minutes)
    with consensus.all_hosts_agree("the first step", timeout_seconds=timeout):
        train_step, diagnose = _compile(run, pending[0])
        reporter.start([*train_step.out_info[1], *(diagnose.out_info if diagnose else ())])
    stop_and_save.reset_timer(run.step)
    reporter.log(run.data_iter.describe_workers())
    run_steps(
        lambda state, batch: train_step(state, run.frozen, batch, run.root_key, run.schedule),
        run.state,
        iter(lambda: pending.pop() if pending else _next_batch(run, reporter, preemption), None),
        total_steps=run.config.total_steps,
        first_step=run.step,
        callbacks=_RunCallbacks(run, reporter, stop_and_save, watchdog, profiler, diagnose),
    )


@dataclasses.dataclass(frozen=True)
class _RunCallbacks(Callbacks):
    """Callbacks of a pretraining run: signals, checkpoints, diagnostics, traces and logs."""

    run: Run
    reporter: reporter_lib.Reporter
    stop_and_save: StopAndSave
    watchdog: Watchdog
    profiler: Profiler | None
    compute_diagnostics: step_lib.DiagnosticsFn | None

    def should_stop(self, step: int) -> bool:
        flags = self.stop_and_save.poll(step)
        if flags.stop:
            return True
        self.watchdog.heartbeat(step, "a save")
        if flags.save:
            self._save()
        self.watchdog.heartbeat(step, "the wait for data")
        return False

    def before_step(self, number: int) -> None:
        self.watchdog.heartbeat(number - 1, "the step")
        if self.profiler:
            self.profiler.start_if_due(number)
        if evaluation := self.run.online_evaluation:
            evaluation.before_step(number, self.run.state.params["encoder"], self.reporter.pause)

    def diagnose(self, number: int, state: Any, batch: Any) -> dict[str, jax.Array]:
        run = self.run
        if not reporter_lib.is_due(number, run.config.log.diagnostics_every_steps):
            return {}
        diagnostics = self.compute_diagnostics(state, run.frozen, batch, run.root_key)
        self.reporter.wait_if_serial(diagnostics)
        return diagnostics

    def after_step(
        self, number: int, state: Any, metrics: Any, diagnostics: dict[str, jax.Array]
    ) -> None:
        run = self.run
        # The saved data position must be the one after the batches of all completed steps.
        run.state, run.step, run.position = state, number, run.data_iter.get_state()
        if self.profiler and (folder := self.profiler.stop_if_due(number, metrics)):
            self.reporter.log(f"trace of steps up to {number}: tensorboard --logdir={folder}")
        if run.online_evaluation:
            params, pause = state.params["encoder"], self.reporter.pause
            diagnostics |= run.online_evaluation.after_step(number, params, pause)
        counts = run.data_iter.counts()
        for name in ("dropped_videos", "short_clips"):
            counts[name] *= mesh_lib.loads_first_copy(run.mesh)
        self.reporter.add_step(number, metrics, diagnostics, counts, run.data_iter.decoded)
        self.watchdog.heartbeat(number, "a save")
        if number % run.config.checkpoint.every_steps == 0:
            self._save()

    def _save(self) -> None:
        run = self.run
        self.reporter.flush()  # a resumed run must find all logged steps
        run.records.copy()
        run.checkpointer.save(run.step, run.state, run.position, score=self.reporter.pop_score())
        if not (run.workdir / "config.json").exists():
            run.records.write_config(run.config, run.recipe)
        run.strips.start(run.step)
        self.stop_and_save.reset_timer(run.step)


def _next_batch(
    run: Run, reporter: reporter_lib.Reporter, preemption: Preemption
) -> dict[str, jax.Array]:
    """Returns the next batch. In a single-process run, a signal interrupts the wait for it."""
    start = time.perf_counter()
    with preemption.raise_on_signal() if jax.process_count() == 1 else contextlib.nullcontext():
        batch = next(run.data_iter)
    reporter.add_data_wait(time.perf_counter() - start)
    return mesh_lib.shard_batch(batch, run.mesh, run.config.batch_size)


def _compile(
    run: Run, batch: dict[str, jax.Array]
) -> tuple[step_lib.StepFn, step_lib.DiagnosticsFn | None]:
    """Compiles the step and the diagnostics. Calls with other shapes raise an error."""
    start, diagnosed = time.perf_counter(), run.config.log.diagnostics_every_steps
    arguments = run.mesh, run.state, run.frozen, batch, run.root_key
    train_step = run.training.compile_step(*arguments, run.schedule)
    diagnose = run.training.compile_diagnostics(*arguments) if diagnosed else None
    kept = f", cached in {cache}" if (cache := jax.config.jax_compilation_cache_dir) else ""
    log_on_process_0(f"compiled in {time.perf_counter() - start:.1f} s{kept}")
    return train_step, diagnose
