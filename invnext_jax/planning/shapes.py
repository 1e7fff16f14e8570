"""Computes the arguments of a training step as abstract arrays from a config."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from invnext_jax.stages import registry, teacher_cache
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import mesh_checks
from invnext_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The arguments of a step as abstract arrays.

    Attributes:
      training: the setup of the run.
      mesh: the mesh; an abstract one for devices that are not available.
      boxed: the state and the frozen parameters, in boxes with logical axes.
    """

    training: registry.TrainingSetup
    mesh: Mesh | AbstractMesh
    boxed: tuple[state_lib.TrainState, Any]

    @property
    def config(self) -> Any:
        """The run's config."""
        return self.training.config

    @functools.cached_property
    def state(self) -> state_lib.TrainState:
        """The training state, with shardings."""
        return mesh_lib.abstract_arrays(self.boxed[0], self.mesh)

    @functools.cached_property
    def frozen(self) -> Any:
        """The frozen parameters, with shardings."""
        return mesh_lib.abstract_arrays(self.boxed[1], self.mesh)

    @functools.cached_property
    def step_frozen(self) -> Any:
        """The frozen parameters that the step uses. Stored outputs replace the image teacher."""
        names = [n for n in self.frozen if n != "teacher" or not self.config.teacher.cache]
        return {name: self.frozen[name] for name in names}

    @functools.cached_property
    def clip(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a batch for one clip, by name, as arguments of the step."""
        config, side = self.config, self.config.data.size
        video = jax.ShapeDtypeStruct((config.data.frames, side, side, 3), np.uint8)
        if not config.teacher.cache or "teacher" not in self.boxed[1]:
            return {"video": video}
        stored = teacher_cache.abstract_outputs(self.training.stage, config)
        return {"video": video, **stored}

    def replace(self, options: dict[str, Any], devices: int) -> "Shapes":
        """Returns the arguments for other values of options that change no shape.

        Args:
          options: values by dotted name, such as those of `accumulate` and `mesh.fsdp`.
          devices: number of devices.
        """
        config = ml_collections.ConfigDict(self.config).copy_and_resolve_references()
        config.update_from_flattened_dict(options)
        mesh = mesh_lib.make_abstract_mesh(config.mesh, devices)
        training = registry.make_setup(ml_collections.FrozenConfigDict(config))
        return Shapes(training, mesh, self.boxed)


def make_shapes(config: Any, devices: Sequence[jax.Device] | int | None = None) -> Shapes:
    """Returns the arguments of a step as abstract arrays.

    Args:
      config: the run's config, frozen.
      devices: the devices, or the number of devices, which need not be available; None for the
        available devices.
    """
    if isinstance(devices, int):
        mesh = mesh_lib.make_abstract_mesh(config.mesh, devices)
    else:
        mesh = mesh_lib.make_mesh(config.mesh, devices)
    mesh_checks.check_config(config, mesh)
    training = registry.make_setup(config)
    return Shapes(training, mesh, (training.boxed_state(), training.stage.abstract_frozen(config)))
