"""The training step: gradients, update, metrics; knows nothing of stages."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invnext_jax.training.state import Copies, TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]
StepFn = Callable[[TrainState, Any, dict[str, jax.Array], jax.Array], tuple[TrainState, Metrics]]
MeasureFn = Callable[[TrainState, Any, dict[str, jax.Array], jax.Array], Metrics]

NO_COPIES: tuple[Copies, float] = ({}, 1.0)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    following: tuple[Copies, float] = NO_COPIES,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> StepFn:
    """Makes `step(state, frozen, batch, root_key) -> (state, metrics)`, not yet jitted.

    The step's key is `fold_in(root_key, state.step)`, so that a resumed run draws the same numbers.
    If the loss or the gradient's norm is not finite, the update is skipped as a whole: parameters,
    what follows them and optimiser state stay as they are, `step` and `skipped` go on.

    Args:
        loss_fn: (params, frozen, batch, key) -> (float32 scalar, dict of float32 scalars); `frozen`
            has what follows the parameters too.
        tx: the optimiser; `update(..., finite=False)` leaves its state as it is, as that of
            `make_optimizer` and of what `optimizer.guarded` wraps.
        schedule: updates done -> learning rate, for the log.
        following: copies of parameter groups, by name; and the share m of a copy that stays in a
            step: copy = m * copy + (1 - m) * group, with the parameters after the update.
        accumulate: parts that the batch is taken in, one after the other; see `take_microbatch`.
        ema_decay: share of the parameters' moving average that stays in a step; 0: there is none.

    Returns:
        The step. Its metrics, float32 and int32 scalars: what `loss_fn` gave, and "loss",
        "grad_norm" (before clipping), "learning_rate", "nonfinite" (1 if this step was skipped),
        "skipped" and "skipped_in_row".
    """

    def train_step(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], root_key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(root_key, state.step)
        seen = {**frozen, **state.follow}
        (loss, terms), grads = _mean_gradients(loss_fn, accumulate, state.params, seen, batch, key)
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(finite, new, old)

        updates, opt_state = tx.update(grads, state.opt_state, state.params, finite=finite)
        params = jax.tree.map(choose, optax.apply_updates(state.params, updates), state.params)
        follow = _follow(state.follow, params, *following)
        ema = (
            jax.tree.map(functools.partial(_move, ema_decay), state.ema, params)
            if ema_decay
            else {}
        )

        nonfinite = 1 - finite.astype(jnp.int32)
        next_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + nonfinite,
            skipped_in_row=(state.skipped_in_row + 1) * nonfinite,
            follow=jax.tree.map(choose, follow, state.follow),
            ema=jax.tree.map(choose, ema, state.ema),
        )
        metrics = {
            **terms,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
            "nonfinite": nonfinite,
            "skipped": next_state.skipped,
            "skipped_in_row": next_state.skipped_in_row,
        }
        return next_state, metrics

    return train_step


def take_microbatch(
    batch: dict[str, jax.Array], key: jax.Array, number: int | jax.Array, parts: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """One of the parts of a batch, every `parts`-th clip, and the key that it draws from.

    So each device takes its part from the clips that it has. A whole batch keeps its key; the parts
    draw from `fold_in(key, number)`.

    Args:
        batch: arrays [b ...].
        key: the step's key.
        number: of the part, from 0.
        parts: how many there are; b divides by them.
    """
    if parts == 1:
        return batch, key

    def take(x: jax.Array) -> jax.Array:
        grouped = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(grouped, number, axis=1, keepdims=False)

    return {name: take(x) for name, x in batch.items()}, jax.random.fold_in(key, number)


def _mean_gradients(
    loss_fn: LossFn,
    parts: int,
    params: Any,
    frozen: Any,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """Loss, metrics and gradients, the means over the parts of the batch; summed in float32."""
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return value_and_grad(params, frozen, batch, key)

    def compute(number: jax.Array) -> tuple[tuple[jax.Array, Metrics], Any]:
        return value_and_grad(params, frozen, *take_microbatch(batch, key, number, parts))

    def add(sums: Any, number: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(lambda total, x: total + x / parts, sums, compute(number)), None

    shapes = jax.eval_shape(compute, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    # The sums lie like the parameters, or each device would hold all of them.
    zeros = (zeros[0], jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params))
    return jax.lax.scan(add, zeros, jnp.arange(parts))[0]


def _follow(follow: dict[str, Any], params: Any, copies: Copies, momentum: float) -> dict[str, Any]:
    move = functools.partial(_move, momentum)
    return {name: jax.tree.map(move, follow[name], params[copies[name]]) for name in copies}


def _move(share: float, old: jax.Array, new: jax.Array) -> jax.Array:
    return share * old + (1 - share) * new
