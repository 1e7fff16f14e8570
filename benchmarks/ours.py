"""Our training step on synthetic clips, built by the functions that training uses.

Nothing here needs more than jax, flax, optax, einops, numpy and ml_collections.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax import stage1, stage2
from invnext_jax.models import attention
from invnext_jax.runtime import compilation, optimizer
from invnext_jax.runtime import mesh as mesh_lib
from invnext_jax.runtime import state as state_lib
from invnext_jax.runtime import step as step_lib

STAGES = {"stage1": (stage1, stage1_config), "stage2": (stage2, stage2_config)}


def mid_config(stage: str) -> ml_collections.ConfigDict:
    """A middle size that two CPU cores can train, in float32: the one of the CPU benchmark."""
    config = STAGES[stage][1].get_config("base")
    config.dtype = "float32"
    config.batch_size = 2
    config.data.update(size=112, frames=8)
    config.encoder.update(width=384, depth=12, heads=6, mlp_width=1536, drop_path=0.0)
    config.encoder.update(size=112, frames=8)
    config.predictor.update(width=384, heads=6, mlp_width=1024)
    config.decoder.update(depth=3, width=512)
    config.teacher.update(width=384, depth=6, heads=6, mlp_width=1536, tap_interval=1.0)
    config.teacher.update(size=128, train_size=128)
    config.mask.visible = (0.19, 0.08)  # 12 and 5 of the 64 places of a frame
    return config


def batch_of(config: Any) -> dict[str, np.ndarray]:
    """A batch of random clips, uint8 [b t h w c]."""
    data = config.data
    shape = (config.batch_size, data.frames, data.size, data.size, 3)
    return {"video": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}


@dataclasses.dataclass
class Step:
    """A compiled step with its state; calling it trains once more, on the same batch.

    Attributes:
      compiled: the executable.
      compile_seconds: what tracing and compiling took.
      flops: of the matrix products of a step, see `count_flops`.
    """

    compiled: Any
    compile_seconds: float
    flops: float
    state: Any
    rest: tuple[Any, ...]

    def __call__(self) -> float:
        """Trains one step and waits for it; the loss."""
        self.state, metrics = self.compiled(self.state, *self.rest)
        return float(metrics["loss"])


def make_step(config: ml_collections.ConfigDict) -> Step:
    """The step that a config describes, with random parameters, teacher and target too."""
    config = ml_collections.FrozenConfigDict(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    step, init_fn, tx, (abstract, abstract_frozen) = _build(config, mesh)
    key = jax.device_put(jax.random.key(0), mesh_lib.replicated(mesh))
    state = state_lib.init_state(init_fn, tx, abstract, key)
    rest = (_random_like(abstract_frozen, key), mesh_lib.put_batch(batch_of(config), mesh), key)
    start = time.perf_counter()
    with mesh_lib.mesh_rules(mesh), attention.kernel(config.attention):
        compiled = compilation.compile_step(step, state, *rest)
    return Step(compiled, time.perf_counter() - start, count_flops(config), state, rest)


def _build(config: Any, mesh: Any) -> tuple[Any, Any, Any, Any]:
    stage = STAGES[config.stage][0]
    model = stage.make_model(config)
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    tx = optimizer.make_optimizer(config.optimizer, schedule, stage.untrained(config))
    init_fn = functools.partial(stage.init_params, config, model)
    step = step_lib.make_train_step(functools.partial(stage.loss_fn, config, model), tx, schedule)
    abstract = state_lib.abstract_state(init_fn, tx, mesh)
    frozen = mesh_lib.abstract_arrays(stage.abstract_frozen(config), mesh)
    return step, init_fn, tx, (abstract, frozen)


def _random_like(abstract: Any, key: jax.Array) -> Any:
    """Frozen parameters: small and random, norms near 1, so that no activation blows up."""
    flat, tree = jax.tree_util.tree_flatten_with_path(abstract)

    def draw(key):
        leaves = []
        for i, (path, leaf) in enumerate(flat):
            noise = 0.02 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
            leaves.append(noise + ("scale" in jax.tree_util.keystr(path)))
        return leaves

    leaves = jax.jit(draw, out_shardings=[leaf.sharding for _, leaf in flat])(key)
    return jax.tree_util.tree_unflatten(tree, leaves)


def count_flops(config: Any) -> float:
    """Floating point operations of a step's matrix products, counted where they are traced.

    Nothing is counted that is computed twice to save memory, nor, of local attention, what lies
    outside the window.
    """
    config = ml_collections.ConfigDict(config)
    config.remat = "none"
    config = ml_collections.FrozenConfigDict(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    step, _, _, (state, frozen) = _build(config, mesh)
    batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, batch_of(config)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with attention.kernel("naive"):
        jaxpr = jax.make_jaxpr(step)(state, frozen, batch, key)
    return _matmul_flops(jaxpr.jaxpr) - _outside_windows(config)


def _matmul_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = np.prod([left[axis] for axis in contract])
            total += 2.0 * inner * np.prod(equation.outvars[0].aval.shape)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        parts = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
        total += repeats * sum(_matmul_flops(_open(part)) for part in parts if _is_jaxpr(part))
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(_open(value), "eqns")


def _open(value: Any) -> Any:
    return getattr(value, "jaxpr", value)


def _outside_windows(config: Any) -> float:
    """What naive local attention of the predictor computes beyond its windows."""
    p, data, patch = config.predictor, config.data, config.encoder.patch
    if p.kind != "modernbert":
        return 0.0
    places = (data.size // patch) ** 2 * data.frames + config.encoder.class_tokens
    numbers = range(p.last_layer - p.depth + 1, p.last_layer + 1)
    layers = sum(number % 3 != 0 for number in numbers)
    masks = len(config.mask.blocks) if config.mask.kind == "multi_block" else 1
    outside = places * max(places - 2 * (p.window // 2) - 1, 0)
    forward = 2 * 2 * config.batch_size * outside * p.width * layers * masks
    return 3.0 * forward  # the backward pass has twice the products
