"""What a training step changes: parameters, optimiser state and counters.

Abstract shapes come first, then shardings, then one jitted initialisation with those shardings, so
that no array is ever made on one device.
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
        step: int32 scalar, steps done, skipped ones among them.
        params: tree of float32 arrays.
        opt_state: the optimiser's state.
        skipped: int32 scalar, steps so far whose loss or gradient was not finite.
        skipped_in_row: int32 scalar, those among them that ended just now, without a gap.
        follow: copies of parameter groups that follow these slowly, by name; mostly none.
        ema: the parameters' moving average, of their structure; {} if there is none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array
    follow: dict[str, Any] = flax.struct.field(default_factory=dict)
    ema: Any = flax.struct.field(default_factory=dict)


InitFn = Callable[[jax.Array], Any]  # key -> parameters boxed with their logical axes
Copies = Mapping[str, str]  # name of a copy in `follow` -> the group of parameters that it follows


def _first_state(
    init_fn: InitFn, tx: optax.GradientTransformation, copies: Copies, ema: bool, key: jax.Array
) -> TrainState:
    params = init_fn(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=tx.init(params),
        skipped=zero,
        skipped_in_row=zero,
        follow={name: params[group] for name, group in copies.items()},
        ema=params if ema else {},
    )


def abstract_state(
    init_fn: InitFn,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    copies: Copies | None = None,
    ema: bool = False,
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is computed.

    The optimiser's moments, and what follows the parameters, lie like the parameters that they
    belong to.

    Args:
        init_fn: key -> boxed parameters.
        tx: the optimiser.
        mesh: where the state lies.
        copies: what follows the parameters.
        ema: whether there is a moving average of them.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key: _first_state(init_fn, tx, copies or {}, ema, key), key)
    return mesh_lib.abstract_arrays(boxed, mesh)


def init_state(
    init_fn: InitFn, tx: optax.GradientTransformation, abstract: TrainState, key: jax.Array
) -> TrainState:
    """Computes the first state, each shard on its own device; nothing follows it yet.

    Args:
        init_fn: key -> boxed parameters.
        tx: the optimiser.
        abstract: what `abstract_state` gave.
        key: PRNG key of the initial values.
    """

    def init(key: jax.Array) -> TrainState:
        return mesh_lib.unbox(_first_state(init_fn, tx, {}, False, key))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.replace(follow={}, ema={}))
    # XLA spends more time on optimising this program for the CPU than the program runs.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(key)


def init_copies(state: TrainState, copies: Copies, ema: bool = False) -> TrainState:
    """The state in which each copy, and the moving average, stand where the parameters do."""
    # True copies: the step donates the state, and no buffer may be donated twice.
    follow = {name: jax.tree.map(jnp.copy, state.params[group]) for name, group in copies.items()}
    return state.replace(follow=follow, ema=jax.tree.map(jnp.copy, state.params) if ema else {})


def get_subtree(tree: Any, path: str) -> Any:
    """What lies at a path like "predictor/layer0" of nested dicts."""
    return functools.reduce(operator.getitem, path.split("/"), tree)


def replace_subtree(tree: Any, path: str, new: Any) -> Any:
    """The tree with `new` at the path."""
    name, _, rest = path.partition("/")
    return {**tree, name: replace_subtree(tree[name], rest, new) if rest else new}


def compare_shapes(found: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> list[str]:
    """Lines that say which arrays are missing, surplus or of another shape; none if all fit."""
    lines = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    lines += [f"surplus: {name} {found[name]}" for name in found if name not in wanted]
    lines += [
        f"misshapen: {name} {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return lines


def flat_shapes(tree: Any) -> dict[str, tuple]:
    """Path -> shape of each array of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
