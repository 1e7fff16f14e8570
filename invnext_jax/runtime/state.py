"""What a training step changes: parameters, optimiser state and counters.

Abstract shapes come first, then shardings, then one jitted initialisation with those shardings, so
that no array is ever made on one device.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from invnext_jax.runtime import mesh as mesh_lib


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps.

    Attributes:
        step: int32 scalar, steps done, skipped ones among them.
        params: tree of float32 arrays.
        opt_state: the optimiser's state.
        skipped: int32 scalar, steps so far whose loss or gradient was not finite.
        skipped_in_row: int32 scalar, those among them that ended just now, without a gap.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array


InitFn = Callable[[jax.Array], Any]  # key -> parameters boxed with their logical axes


def _first_state(init_fn: InitFn, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    params = init_fn(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero, params=params, opt_state=tx.init(params), skipped=zero, skipped_in_row=zero
    )


def abstract_state(init_fn: InitFn, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is computed.

    The optimiser's moments lie like the parameters that they belong to.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key: _first_state(init_fn, tx, key), key)
    return mesh_lib.abstract_arrays(boxed, mesh)


def init_state(
    init_fn: InitFn, tx: optax.GradientTransformation, abstract: TrainState, key: jax.Array
) -> TrainState:
    """Computes the first state, each shard on its own device.

    Args:
        init_fn: key -> boxed parameters.
        tx: the optimiser.
        abstract: what `abstract_state` gave.
        key: PRNG key of the initial values.
    """

    def init(key: jax.Array) -> TrainState:
        return mesh_lib.unbox(_first_state(init_fn, tx, key))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # XLA spends more time on optimising this program for the CPU than the program runs.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)
