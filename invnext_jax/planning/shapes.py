"""Computes the arguments of a training step as abstract arrays from a config."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The step's arguments as abstract arrays with shardings, the mesh and the training setup."""

    training: registry.TrainingSetup
    mesh: Mesh
    state: state_lib.TrainState
    frozen: Any

    @property
    def config(self) -> Any:
        """The run's config."""
        return self.training.config


def make_shapes(config: Any) -> Shapes:
    """Returns the arguments of a step as abstract arrays on the available devices."""
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch(config, mesh)
    training = registry.make_setup(config)
    return Shapes(training, mesh, training.abstract_state(mesh), training.abstract_frozen(mesh))
