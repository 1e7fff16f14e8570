"""AdamW with the reference's groups, warm-up and cosine schedule, clipping."""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import numpy as np
import optax

# Learned tables and tokens that are not decayed; the predictor's table and mask token are.
NO_DECAY = (("encoder", "position"), ("encoder", "class_token"), ("align", "position"))


def make_schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a half cosine down to `min_learning_rate` at the last step.

    Args:
      config: fields learning_rate, min_learning_rate, warmup_steps.
      total_steps: length of the run.
    """
    peak, floor, warmup = config.learning_rate, config.min_learning_rate, config.warmup_steps
    decay = optax.schedules.cosine_decay_schedule(
        peak - floor, max(total_steps - warmup, 1), alpha=0.0
    )

    def schedule(step):
        ramp = peak * step / max(warmup - 1, 1)
        return jax.numpy.where(step < warmup, ramp, floor + decay(step - warmup))

    return schedule


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: matrices, but no biases and none of `NO_DECAY`.

    Stacked layers carry one more axis than the reference's parameters, so the names decide.
    """
    flat = flax.traverse_util.flatten_dict(flax.linen.unbox(params))
    vectors = ("bias", "scale", "scale1", "scale2")

    def decays(path, leaf):
        if any(path[: len(prefix)] == prefix for prefix in NO_DECAY):
            return False
        return path[-1] not in vectors and np.ndim(leaf) > 0

    return flax.traverse_util.unflatten_dict({p: decays(p, x) for p, x in flat.items()})


def make_optimizer(
    config: Any, schedule: optax.Schedule, untrained: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clipping, AdamW with masked decay, and no update of `config.frozen` subtrees.

    `update(..., finite=False)` leaves the state as it is, whatever the gradients are.

    Args:
      config: fields of `config.optimizer`.
      schedule: learning rate of each step.
      untrained: more subtrees that are not updated.
    """
    adamw = optax.chain(
        _adam(*config.betas, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        guarded(optax.scale_by_learning_rate(schedule)),
    )
    transforms = [optax.clip_by_global_norm(config.clip_norm), adamw]
    return optax.chain(*transforms, _freeze((*config.frozen, *untrained)))


def guarded(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx`, whose `update(..., finite=False)` leaves the state as it is."""

    def update(updates, state, params=None, *, finite=True, **rest):
        del rest
        updates, new = tx.update(updates, state, params)
        return updates, jax.tree.map(lambda n, old: jax.numpy.where(finite, n, old), new, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, guarded, its updates computed from the moments that are kept.

    So XLA computes new moments once, in the place of the old ones. With optax's own updates, which
    are of the moments before the guard, CPUs copy all old moments first: three times the time.
    """
    moments = guarded(optax.scale_by_adam(b1, b2, eps))

    def update(updates, state, params=None, *, finite=True, **rest):
        del rest
        _, state = moments.update(updates, state, params, finite=finite)
        mu = optax.tree.bias_correction(state.mu, b1, state.count)
        nu = optax.tree.bias_correction(state.nu, b2, state.count)
        return jax.tree.map(lambda m, v: m / (jax.numpy.sqrt(v) + eps), mu, nu), state

    return optax.GradientTransformationExtraArgs(moments.init, update)


def _freeze(names: Sequence[str]) -> optax.GradientTransformation:
    def mask(updates):
        return {name: name in names for name in updates}

    return optax.masked(optax.set_to_zero(), mask)
