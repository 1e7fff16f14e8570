"""The training step: gradients, update, metrics; knows nothing of stages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invnext_jax.runtime.state import Copies, TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]
StepFn = Callable[[TrainState, Any, dict[str, jax.Array], jax.Array], tuple[TrainState, Metrics]]


NOTHING: tuple[Copies, float] = ({}, 1.0)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    following: tuple[Copies, float] = NOTHING,
) -> StepFn:
    """Makes `step(state, frozen, batch, root_key) -> (state, metrics)`, not yet jitted.

    The step's key is `fold_in(root_key, state.step)`, so that a resumed run draws the same numbers.
    If the loss or the gradient's norm is not finite, the update is skipped as a whole: parameters,
    what follows them and optimiser state stay as they are, `step` and `skipped` go on.

    Args:
        loss_fn: (params, frozen, batch, key) -> (float32 scalar, dict of float32 scalars); `frozen`
            has what follows the parameters too.
        tx: the optimiser.
        schedule: updates done -> learning rate, for the log.
        following: copies of parameter groups, by name; and the share m of a copy that stays in a
            step: copy = m * copy + (1 - m) * group, with the parameters after the update.

    Returns:
        The step. Its metrics, float32 and int32 scalars: what `loss_fn` gave, and "loss",
        "grad_norm" (before clipping), "learning_rate", "nonfinite" (1 if this step was skipped),
        "skipped" and "skipped_in_row".
    """

    def train_step(
        state: TrainState, frozen: Any, batch: dict[str, jax.Array], root_key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(root_key, state.step)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        seen = {**frozen, **state.follow}
        (loss, terms), grads = value_and_grad(state.params, seen, batch, key)
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        follow = _follow(state.follow, params, *following)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(finite, new, old)

        nonfinite = 1 - finite.astype(jnp.int32)
        next_state = TrainState(
            step=state.step + 1,
            params=jax.tree.map(choose, params, state.params),
            opt_state=jax.tree.map(choose, opt_state, state.opt_state),
            skipped=state.skipped + nonfinite,
            skipped_in_row=(state.skipped_in_row + 1) * nonfinite,
            follow=jax.tree.map(choose, follow, state.follow),
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


def _follow(follow: dict[str, Any], params: Any, copies: Copies, momentum: float) -> dict[str, Any]:
    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        return momentum * old + (1 - momentum) * new

    return {name: jax.tree.map(move, follow[name], params[copies[name]]) for name in copies}
