"""Registry of stages, and the setup of a run from its config without creating arrays.

Training, planning and benchmarks set up their runs here.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from invnext_jax.errors import UserError
from invnext_jax.models import attention
from invnext_jax.planning import flops
from invnext_jax.stages.stage import Stage
from invnext_jax.stages.stage1 import Stage1
from invnext_jax.stages.stage2 import Stage2
from invnext_jax.training import compilation, optimizer
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib

STAGES: dict[str, Stage] = {"stage1": Stage1(), "stage2": Stage2()}


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """The parts of a run that are determined by its config.

    Attributes:
      config: the run's config, frozen.
      stage: stage of the run.
      model: the stage's model.
      init_fn: key -> parameters.
      tx: the optimizer; it does not update `untrained_groups`.
      ema_targets: maps the name of each EMA target to the parameter group that it averages.
      step: (state, frozen, batch, root_key, schedule) -> (state, metrics), see
          `step.make_train_step`.
    """

    config: Any
    stage: Stage
    model: Any
    init_fn: Callable[[jax.Array], Any]
    tx: optax.GradientTransformation
    ema_targets: state_lib.EmaTargets
    step: step_lib.StepFn

    @property
    def untrained_groups(self) -> tuple[str, ...]:
        """The top-level parameter groups that the optimizer does not update."""
        return (*self.config.optimizer.frozen, *self.stage.frozen_groups(self.config))

    def boxed_state(self) -> state_lib.TrainState:
        """Returns shapes, dtypes and logical axes of the state."""
        has_ema = self.config.ema.decay > 0
        return state_lib.boxed_state(self.init_fn, self.tx, self.ema_targets, has_ema)

    def abstract_state(self, mesh: Mesh) -> state_lib.TrainState:
        """Returns shapes, dtypes and shardings of the state on a mesh."""
        return mesh_lib.abstract_arrays(self.boxed_state(), mesh)

    def abstract_frozen(self, mesh: Mesh) -> Any:
        """Returns shapes, dtypes and shardings of the frozen parameters on a mesh."""
        return mesh_lib.abstract_arrays(self.stage.abstract_frozen(self.config), mesh)

    def make_schedule(self, mesh: Mesh) -> optimizer.Schedule:
        """Returns the learning-rate schedule, replicated on a mesh. The config must be resolved."""
        schedule = optimizer.make_schedule(self.config.optimizer, self.config.total_steps)
        return mesh_lib.replicate(schedule, mesh)

    def compile_step(self, mesh: Mesh, *arguments: Any) -> step_lib.StepFn:
        """Compiles the step. The arguments may be abstract; see `compilation.compile_step`."""
        with self.trace_options(mesh):
            return compilation.compile_step(self.step, *arguments)

    def compile_diagnostics(self, mesh: Mesh, *arguments: Any) -> step_lib.DiagnosticsFn:
        """Compiles the diagnostics, a function of the step's arguments that changes no state."""
        diagnostics = functools.partial(self.stage.diagnostics, self.config, self.model)
        with self.trace_options(mesh):
            return compilation.compile_diagnostics(
                diagnostics, *arguments, microbatches=self.config.accumulate
            )

    @contextlib.contextmanager
    def trace_options(self, mesh: Mesh) -> Iterator[None]:
        """Context manager in which code is traced with the config's options of attention."""
        rules = mesh_lib.mesh_rules(mesh, self.config.sequence_attention)
        with rules, attention.kernel(self.config.attention):
            yield


def find_stage(config: Any) -> Stage:
    """Returns the stage of a config.

    Raises:
      UserError: there is no stage with this name.
    """
    if config.stage not in STAGES:
        raise UserError(f"config.stage={config.stage!r} must be one of {', '.join(STAGES)}")
    return STAGES[config.stage]


def step_flops(config: Any) -> float:
    """Returns the model FLOPs, forward and backward, of one training step on the whole batch."""
    return sum(split_step_flops(config).values())


def split_step_flops(config: Any) -> dict[str, float]:
    """Returns the FLOPs of `step_flops` by the dtype of the products; see `flops.split_flops`."""
    return flops.split_flops(find_stage(config).count_flops(config), config.batch_size)


def make_setup(config: Any) -> TrainingSetup:
    """Makes the setup of a run from a checked config, without creating arrays.

    Args:
      config: a run's config, frozen.

    Raises:
      UserError: the stage is unknown.
    """
    stage = find_stage(config)
    model = stage.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer, stage.frozen_groups(config))
    ema_targets = stage.ema_targets(config)
    step = step_lib.make_train_step(
        functools.partial(stage.loss_fn, config, model),
        tx,
        ema_targets,
        accumulate=config.accumulate,
        ema_decay=config.ema.decay,
    )
    return TrainingSetup(
        config=config,
        stage=stage,
        model=model,
        init_fn=functools.partial(stage.init_params, config, model),
        tx=tx,
        ema_targets=ema_targets[0],
        step=step,
    )
