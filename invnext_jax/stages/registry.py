"""The stages by name, and what a run of a config is made of before any array is.

A stage is a module: model, parameters, frozen parameters, loss, diagnostics (see `stage1.py`).
Training, planning and benchmarks all assemble a run here.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from invnext_jax.errors import UserError
from invnext_jax.models import attention
from invnext_jax.stages import stage1, stage2
from invnext_jax.training import compilation, optimizer
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib

STAGES = {"stage1": stage1, "stage2": stage2}


@dataclasses.dataclass(frozen=True)
class Training:
    """What a config's run consists of.

    Attributes:
        config: the run's config, frozen.
        stage: its stage.
        model: the stage's model.
        init_fn: key -> parameters.
        tx: the optimiser; it leaves alone what no loss of the stage reaches.
        copies: parameter groups that others follow, by the follower's name.
        step: (state, frozen, batch, root_key) -> (state, metrics), see `step.make_train_step`.
    """

    config: Any
    stage: ModuleType
    model: Any
    init_fn: Callable[[jax.Array], Any]
    tx: optax.GradientTransformation
    copies: dict[str, str]
    step: step_lib.StepFn

    def abstract_state(self, mesh: Mesh) -> state_lib.TrainState:
        """Shapes, dtypes and shardings of the state on a mesh."""
        has_ema = self.config.ema.decay > 0
        return state_lib.abstract_state(self.init_fn, self.tx, mesh, self.copies, has_ema)

    def abstract_frozen(self, mesh: Mesh) -> Any:
        """Shapes, dtypes and shardings of the frozen parameters on a mesh."""
        return mesh_lib.abstract_arrays(self.stage.abstract_frozen(self.config), mesh)

    def compile_step(self, mesh: Mesh, *arguments: Any) -> step_lib.StepFn:
        """Compiles the step; its arguments may be abstract, see `compilation.compile_step`."""
        with mesh_lib.mesh_rules(mesh), attention.kernel(self.config.attention):
            return compilation.compile_step(self.step, *arguments)

    def compile_diagnostics(self, mesh: Mesh, *arguments: Any) -> step_lib.DiagnosticsFn:
        """Compiles the stage's diagnostics, called as the step, which they leave alone."""
        diagnostics = functools.partial(self.stage.diagnostics, self.config, self.model)
        with mesh_lib.mesh_rules(mesh), attention.kernel(self.config.attention):
            return compilation.compile_diagnostics(
                diagnostics, *arguments, microbatches=self.config.accumulate
            )


def find_stage(config: Any) -> ModuleType:
    """The stage of a config.

    Raises:
        UserError: there is none of that name.
    """
    if config.stage not in STAGES:
        raise UserError(f"config.stage={config.stage!r} must be one of {', '.join(STAGES)}")
    return STAGES[config.stage]


def assemble(config: Any) -> Training:
    """Assembles the run of a checked config; nothing is computed yet.

    Args:
        config: a run's config, frozen.

    Raises:
        UserError: an unknown stage.
    """
    stage = find_stage(config)
    model = stage.make_model(config)
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    tx = optimizer.make_optimizer(config.optimizer, schedule, stage.untrained(config))
    following = stage.following(config)
    step = step_lib.make_train_step(
        functools.partial(stage.loss_fn, config, model),
        tx,
        schedule,
        following,
        accumulate=config.accumulate,
        ema_decay=config.ema.decay,
    )
    return Training(
        config=config,
        stage=stage,
        model=model,
        init_fn=functools.partial(stage.init_params, config, model),
        tx=tx,
        copies=following[0],
        step=step,
    )
