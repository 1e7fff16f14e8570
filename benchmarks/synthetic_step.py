"""Training step on random clips, built by the same functions as in training.

It needs only jax, flax, optax, einops, numpy and ml_collections.
"""

import dataclasses
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import recipe
from invnext_jax.training import state as state_lib

CONFIGS = {"stage1": stage1_config, "stage2": stage2_config}


def mid_config(stage: str) -> ml_collections.ConfigDict:
    """Returns the config of the CPU benchmark: a model that two CPU cores can train, in float32."""
    config = CONFIGS[stage].get_config("base")
    config.dtype = "float32"
    config.batch_size = 2
    # The PyTorch step does not recompute activations, and they fit into memory.
    config.remat = "none"
    config.scan_unroll = 12
    config.data.update(size=112, frames=8)
    config.encoder.update(width=384, depth=12, heads=6, mlp_width=1536, drop_path=0.0)
    config.encoder.update(size=112, frames=8)
    config.predictor.update(width=384, heads=6, mlp_width=1024)
    config.decoder.update(depth=3, width=512)
    config.teacher.update(width=384, depth=6, heads=6, mlp_width=1536, tap_interval=1.0)
    config.teacher.update(size=128, train_size=128)
    config.mask.visible = (0.19, 0.08)  # 12 and 5 of the 64 patches of a frame
    return config


def make_batch(config: Any) -> dict[str, np.ndarray]:
    """Returns a batch of random clips, uint8 [b t h w c]."""
    data = config.data
    shape = (config.batch_size, data.frames, data.size, data.size, 3)
    return {"video": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}


@dataclasses.dataclass
class Step:
    """A compiled step with its state. Each call trains one step on the same batch.

    Attributes:
      compiled: the executable.
      compile_seconds: time to trace and compile.
      flops: model FLOPs of a step.
      state: the training state.
      arguments: the remaining arguments of the step: frozen parameters, batch, key and schedule.
    """

    compiled: Any
    compile_seconds: float
    flops: float
    state: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> float:
        """Trains one step and returns its loss."""
        self.state, metrics = self.compiled(self.state, *self.arguments)
        return float(metrics["loss"])


def make_step(config: ml_collections.ConfigDict) -> Step:
    """Compiles the step of a config with random student, teacher and target parameters."""
    config = recipe.resolve_config(config, recipe.PAPER_VIDEOS)[0]
    training = registry.make_setup(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    key = jax.device_put(jax.random.key(0), mesh_lib.replicated(mesh))
    abstract = training.abstract_state(mesh)
    state = state_lib.init_state(training.init_fn, training.tx, abstract, key)
    frozen = _random_like(training.abstract_frozen(mesh), key)
    arguments = (frozen, mesh_lib.shard_batch(make_batch(config), mesh), key)
    arguments += (training.make_schedule(mesh),)
    start = time.perf_counter()
    compiled = training.compile_step(mesh, state, *arguments)
    return Step(
        compiled, time.perf_counter() - start, registry.step_flops(config), state, arguments
    )


def _random_like(abstract: Any, key: jax.Array) -> Any:
    """Returns small random arrays; norm scales are near 1, so that activations stay finite."""
    flat, tree = jax.tree_util.tree_flatten_with_path(abstract)

    def sample(key):
        leaves = []
        for i, (path, leaf) in enumerate(flat):
            noise = 0.02 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
            leaves.append(noise + ("scale" in jax.tree_util.keystr(path)))
        return leaves

    leaves = jax.jit(sample, out_shardings=[leaf.sharding for _, leaf in flat])(key)
    return jax.tree_util.tree_unflatten(tree, leaves)
