"""The training step of all stages: gradients, parameter update and metrics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from invnext_jax.errors import UserError, check_minimums
from invnext_jax.training.optimizer import Schedule
from invnext_jax.training.state import EmaTargets, TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]
StepFn = Callable[
    [TrainState, Any, dict[str, jax.Array], jax.Array, Schedule], tuple[TrainState, Metrics]
]
DiagnosticsFn = Callable[[TrainState, Any, dict[str, jax.Array], jax.Array], Metrics]

NO_EMA_TARGETS: tuple[EmaTargets, float] = ({}, 1.0)


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks the options of the training step.

    Raises:
      UserError: a value is out of range.
    """
    check_minimums(config, {"batch_size": 1, "accumulate": 1, "seed": 0})
    if config.seed >= 2**32:  # jax.random.key would use the low 32 bits only
        raise UserError(f"config.seed={config.seed} must be below {2**32}")
    if not 0 <= config.ema.decay < 1:
        raise UserError(f"config.ema.decay={config.ema.decay} must be at least 0 and below 1")


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformationExtraArgs,
    ema_targets: tuple[EmaTargets, float] = NO_EMA_TARGETS,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> StepFn:
    """Makes `step(state, frozen, batch, root_key, schedule) -> (state, metrics)`, not jitted.

    The schedule maps the number of updates to the learning rate. It is an argument, so that the
    compiled program does not depend on the rates or the number of steps.

    The step's key is `fold_in(root_key, state.step)`, so that a resumed run draws the same random
    numbers. If the loss or the gradient norm is not finite, the whole update is skipped. The
    parameters, moving averages and optimizer state then keep their values, and only `step` and the
    counters of skipped steps change.

    Args:
      loss_fn: function (params, frozen, batch, key) -> (float32 scalar, dict of float32 scalars).
          Its argument `frozen` contains the frozen parameters and the EMA targets.
      tx: the optimizer. Its `update(..., finite=False)` must return the state unchanged, as for
        `make_optimizer` and `optimizer.update_if_finite`. It also receives `learning_rate`.
      ema_targets: a dict that maps the name of each EMA target to its parameter group and the
          momentum m. After each update, target = m * target + (1 - m) * group.
      accumulate: number of microbatches, which are processed sequentially; see
          `select_microbatch`.
      ema_decay: decay of the moving average of all parameters; 0 disables it.

    Returns:
      The step. Its metrics are float32 and int32 scalars: the terms that `loss_fn` returns, and
      "loss", "grad_norm" (before clipping), "learning_rate", "nonfinite" (1 if this step was
      skipped), "skipped" and "skipped_in_row".
    """

    def train_step(
        state: TrainState,
        frozen: Any,
        batch: dict[str, jax.Array],
        root_key: jax.Array,
        schedule: Schedule,
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(root_key, state.step)
        constants = {**frozen, **state.follow}
        (loss, terms), grads = _mean_gradients(
            loss_fn, accumulate, state.params, constants, batch, key
        )
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def select(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(finite, new, old)

        rate = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, finite=finite, learning_rate=rate
        )
        params = jax.tree.map(select, optax.apply_updates(state.params, updates), state.params)
        follow = _update_ema_targets(state.follow, params, *ema_targets)
        ema = (
            jax.tree.map(functools.partial(_update_ema, ema_decay), state.ema, params)
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
            follow=jax.tree.map(select, follow, state.follow),
            ema=jax.tree.map(select, ema, state.ema),
        )
        metrics = {
            **terms,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "nonfinite": nonfinite,
            "skipped": next_state.skipped,
            "skipped_in_row": next_state.skipped_in_row,
        }
        return next_state, metrics

    return train_step


def select_microbatch(
    batch: dict[str, jax.Array], key: jax.Array, index: int | jax.Array, microbatches: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns one microbatch of a batch and its random key.

    A microbatch consists of every `microbatches`-th clip, so that each device reads only its own
    clips. Its key is `fold_in(key, index)`. If there is only one microbatch, the batch and the key
    are returned unchanged.

    Args:
      batch: dict of arrays [b ...].
      key: the step's key.
      index: index of the microbatch, from 0.
      microbatches: number of microbatches, a divisor of b.
    """
    if microbatches == 1:
        return batch, key

    def select(x: jax.Array) -> jax.Array:
        grouped = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(grouped, index, axis=1, keepdims=False)

    return {name: select(x) for name, x in batch.items()}, jax.random.fold_in(key, index)


def _mean_gradients(
    loss_fn: LossFn,
    microbatches: int,
    params: Any,
    frozen: Any,
    batch: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """Returns loss, metrics and gradients, averaged over microbatches in float32."""
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        return value_and_grad(params, frozen, batch, key)

    def compute(index: jax.Array) -> tuple[tuple[jax.Array, Metrics], Any]:
        return value_and_grad(params, frozen, *select_microbatch(batch, key, index, microbatches))

    def add(sums: Any, index: jax.Array) -> tuple[Any, None]:
        added = jax.tree.map(lambda total, x: total + x / microbatches, sums, compute(index))
        return added, None

    shapes = jax.eval_shape(compute, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    # With `zeros_like`, the gradient sums have the parameters' shardings instead of being
    # replicated.
    zeros = (zeros[0], jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params))
    return jax.lax.scan(add, zeros, jnp.arange(microbatches))[0]


def _update_ema_targets(
    averages: dict[str, Any], params: Any, ema_targets: EmaTargets, momentum: float
) -> dict[str, Any]:
    update = functools.partial(_update_ema, momentum)
    return {
        name: jax.tree.map(update, averages[name], params[group])
        for name, group in ema_targets.items()
    }


def _update_ema(decay: float, average: jax.Array, new: jax.Array) -> jax.Array:
    return decay * average + (1 - decay) * new
