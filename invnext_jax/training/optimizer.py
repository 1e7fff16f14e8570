"""AdamW with gradient clipping, a warm-up and cosine schedule, and masked weight decay."""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import numpy as np
import optax

# Learned position tables and tokens without weight decay. Those of the predictor have it.
NO_DECAY = (("encoder", "position"), ("encoder", "class_token"), ("align", "position"))


def make_schedule(config: Any, total_steps: int) -> optax.Schedule:
    """Makes a schedule with linear warm-up from 0 and cosine decay to `min_learning_rate`.

    Args:
      config: has the fields learning_rate, min_learning_rate and warmup_steps.
      total_steps: number of steps of the run.
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
    """Returns a tree that is True where weight decay applies.

    As in the reference, weight decay applies to matrices, but not to biases, scales and the entries
    of `NO_DECAY`. The rule depends on names and not on ranks, because the arrays of scanned layers
    have an additional axis.
    """
    flat = flax.traverse_util.flatten_dict(flax.linen.unbox(params))
    vectors = ("bias", "scale", "scale1", "scale2")

    def decays(path, leaf):
        if any(path[: len(prefix)] == prefix for prefix in NO_DECAY):
            return False
        return path[-1] not in vectors and np.ndim(leaf) > 0

    return flax.traverse_util.unflatten_dict({p: decays(p, x) for p, x in flat.items()})


def make_optimizer(
    config: Any, schedule: optax.Schedule, frozen_groups: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Makes AdamW with global-norm clipping and masked weight decay. Frozen groups are not updated.

    `update(..., finite=False)` returns the state unchanged, even if the gradients are not finite.

    Args:
      config: `config.optimizer` of the run.
      schedule: function that maps the number of updates to the learning rate.
      frozen_groups: parameter groups that are not updated, in addition to `config.frozen`.
    """
    adamw = optax.chain(
        _adam(*config.betas, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        update_if_finite(optax.scale_by_learning_rate(schedule)),
    )
    transforms = [optax.clip_by_global_norm(config.clip_norm), adamw]
    return optax.chain(*transforms, _freeze((*config.frozen, *frozen_groups)))


def update_if_finite(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` so that `update(..., finite=False)` returns the state unchanged."""

    def update(updates, state, params=None, *, finite=True, **rest):
        del rest
        updates, new = tx.update(updates, state, params)
        return updates, jax.tree.map(lambda n, old: jax.numpy.where(finite, n, old), new, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Returns Adam whose `update(..., finite=False)` returns the state unchanged.

    The updates are computed from the selected moments, so that XLA can compute the moments in
    place. With `update_if_finite(optax.scale_by_adam(...))`, the updates use the moments before the
    selection. The CPU backend then copies all old moments first and takes three times as long.
    """
    moments = update_if_finite(optax.scale_by_adam(b1, b2, eps))

    def update(updates, state, params=None, *, finite=True, **rest):
        del rest
        _, state = moments.update(updates, state, params, finite=finite)
        mu = optax.tree.bias_correction(state.mu, b1, state.count)
        nu = optax.tree.bias_correction(state.nu, b2, state.count)
        return jax.tree.map(lambda m, v: m / (jax.numpy.sqrt(v) + eps), mu, nu), state

    return optax.GradientTransformationExtraArgs(moments.init, update)


def _freeze(names: Sequence[str]) -> optax.GradientTransformation:
    """Sets the updates of the named parameter groups to zero."""

    def mask(updates):
        return {name: name in names for name in updates}

    return optax.masked(optax.set_to_zero(), mask)
