"""The training state: parameters, optimizer state, moving averages and counters.

First the abstract shapes are computed, then their shardings. A jitted initialization then creates
the arrays with these shardings, so that no array is ever created in full on one device.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from invnext_jax.training import mesh as mesh_lib


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps.

    Attributes:
      step: int32 scalar, number of completed steps, including skipped ones.
      params: tree of float32 arrays.
      opt_state: the state of the optimizer.
      skipped: int32 scalar, number of steps skipped because the loss or gradient was not finite.
      skipped_in_row: int32 scalar, number of consecutive steps skipped most recently; 0 if the
        last step was not skipped.
      follow: EMA targets, by name: moving averages of parameter groups that the loss uses. {} if
        there are none.
      ema: moving average of all parameters, with the structure of `params`; {} if there is none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array
    follow: dict[str, Any] = flax.struct.field(default_factory=dict)
    ema: Any = flax.struct.field(default_factory=dict)


InitFn = Callable[[jax.Array], Any]  # key -> parameters in `nn.LogicallyPartitioned` boxes
EmaTargets = Mapping[str, str]  # name in `TrainState.follow` -> parameter group that is averaged


def _initial_state(
    init_fn: InitFn,
    tx: optax.GradientTransformation,
    ema_targets: EmaTargets,
    ema: bool,
    key: jax.Array,
) -> TrainState:
    params = init_fn(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=tx.init(params),
        skipped=zero,
        skipped_in_row=zero,
        follow={name: params[group] for name, group in ema_targets.items()},
        ema=params if ema else {},
    )


def boxed_state(
    init_fn: InitFn,
    tx: optax.GradientTransformation,
    ema_targets: EmaTargets | None = None,
    ema: bool = False,
) -> TrainState:
    """Returns the shapes, dtypes and logical axes of the state without computing it.

    Optimizer moments and moving averages have the logical axes of their parameters.

    Args:
      init_fn: function of a PRNG key that returns boxed parameters.
      tx: the optimizer.
      ema_targets: maps names in `TrainState.follow` to the parameter groups that are averaged.
      ema: whether the state contains a moving average of all parameters.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: _initial_state(init_fn, tx, ema_targets or {}, ema, key), key)


def abstract_state(
    init_fn: InitFn,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    ema_targets: EmaTargets | None = None,
    ema: bool = False,
) -> TrainState:
    """Returns the shapes, dtypes and shardings on a mesh of the state; see `boxed_state`."""
    return mesh_lib.abstract_arrays(boxed_state(init_fn, tx, ema_targets, ema), mesh)


def init_state(
    init_fn: InitFn, tx: optax.GradientTransformation, abstract: TrainState, key: jax.Array
) -> TrainState:
    """Computes the initial state without moving averages. Each device computes its shards.

    Args:
      init_fn: function of a PRNG key that returns boxed parameters.
      tx: the optimizer.
      abstract: the output of `abstract_state`.
      key: PRNG key for the initial values.
    """

    def init(key: jax.Array) -> TrainState:
        return mesh_lib.unbox(_initial_state(init_fn, tx, {}, False, key))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.replace(follow={}, ema={}))
    # On CPUs, optimizing this program would take longer than running it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)


def init_ema(state: TrainState, ema_targets: EmaTargets, ema: bool = False) -> TrainState:
    """Returns the state with all moving averages set to the current parameters."""
    # These must be copies, because the step donates the state and a buffer cannot be donated twice.
    follow = {
        name: jax.tree.map(jnp.copy, state.params[group]) for name, group in ema_targets.items()
    }
    return state.replace(follow=follow, ema=jax.tree.map(jnp.copy, state.params) if ema else {})


def get_subtree(tree: Any, path: str) -> Any:
    """Returns the subtree of nested dicts at a path such as "predictor/layer0"."""
    return functools.reduce(operator.getitem, path.split("/"), tree)


def replace_subtree(tree: Any, path: str, new: Any) -> Any:
    """Returns a copy of nested dicts in which `new` replaces the subtree at `path`."""
    name, _, rest = path.partition("/")
    return {**tree, name: replace_subtree(tree[name], rest, new) if rest else new}


def compare_shapes(actual: Mapping[str, tuple], expected: Mapping[str, tuple]) -> list[str]:
    """Returns one line for each array that is missing, is unexpected or has the wrong shape."""
    lines = [f"missing: {name} {expected[name]}" for name in expected if name not in actual]
    lines += [f"unexpected: {name} {actual[name]}" for name in actual if name not in expected]
    lines += [
        f"wrong shape: {name} {actual[name]}, expected {expected[name]}"
        for name in expected
        if name in actual and actual[name] != expected[name]
    ]
    return lines


def flat_shapes(tree: Any) -> dict[str, tuple]:
    """Returns a dict that maps the path of each array in a tree to its shape."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
