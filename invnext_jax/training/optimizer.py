"""AdamW with gradient clipping, a schedule of warm-up and cosine decay, and masked weight decay."""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from invnext_jax.errors import UserError

# Learned position tables and tokens without weight decay. It does apply to those of the predictor.
NO_DECAY = (("encoder", "position"), ("encoder", "class_token"), ("align", "position"))


class Schedule(flax.struct.PyTreeNode):
    """The learning rate as a function of the number of updates: linear warm-up, then cosine decay.

    The fields are leaves of a pytree, which is an argument of the step. A compiled step therefore
    works with any schedule.

    Attributes:
      slope: float32, increase of the rate for each step of the warm-up, which starts from 0.
      warmup_steps: int32, number of steps of the warm-up.
      decay_steps: int32, number of steps of the decay.
      frequency: float32, pi / decay_steps.
      span: float32, peak minus final rate.
      floor: float32, final rate.
    """

    slope: Any
    warmup_steps: Any
    decay_steps: Any
    frequency: Any
    span: Any
    floor: Any

    def __call__(self, updates: jax.Array | int) -> jax.Array:
        """Returns the float32 learning rate after the given number of updates."""
        decayed = jnp.minimum(updates - self.warmup_steps, self.decay_steps)
        cosine = 0.5 * (1 + jnp.cos(decayed.astype(jnp.float32) * self.frequency))
        ramp = self.slope * jnp.asarray(updates, jnp.float32)
        return jnp.where(updates < self.warmup_steps, ramp, self.floor + self.span * cosine)


def make_schedule(config: Any, total_steps: int) -> Schedule:
    """Makes a schedule: linear warm-up from 0, then cosine decay to `min_learning_rate`.

    Args:
      config: has the fields learning_rate, min_learning_rate and warmup_steps. They must be
        resolved, see `recipe.resolve`.
      total_steps: number of steps of the run.

    Returns:
      The schedule, with NumPy scalars.
    """
    peak, floor, warmup = config.learning_rate, config.min_learning_rate, config.warmup_steps
    if min(peak, floor, warmup, total_steps) < 0:
        raise ValueError("the config has no steps or rates yet: resolve its recipe first")
    one, decay = np.float32(1), max(total_steps - warmup, 1)
    # These float32 products are the ones that XLA computes if the numbers are constants of the
    # program. They give the same rates, bit for bit, as earlier versions with constants.
    return Schedule(
        slope=np.float32(peak) * (one / np.float32(max(warmup - 1, 1))),
        warmup_steps=np.int32(warmup),
        decay_steps=np.int32(decay),
        frequency=np.float32(np.pi) * (one / np.float32(decay)),
        span=np.float32(peak - floor),
        floor=np.float32(floor),
    )


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


def check_config(config: Any) -> None:
    """Checks the ranges of AdamW's options and of the clipping.

    Args:
      config: `config.optimizer` of the run.

    Raises:
      UserError: an option is out of range.
    """
    if not isinstance(config.betas, tuple | list) or len(config.betas) != 2:
        raise UserError(
            f"config.optimizer.betas={config.betas} must be a pair of numbers, such as (0.9, 0.98)"
        )
    if not all(0 <= beta < 1 for beta in config.betas):
        raise UserError(f"config.optimizer.betas={config.betas} must be at least 0 and below 1")
    if not config.eps > 0:
        raise UserError(f"config.optimizer.eps={config.eps} must be positive")
    for name in ("weight_decay", "clip_norm"):
        if not config[name] >= 0:
            raise UserError(f"config.optimizer.{name}={config[name]} must be at least 0")


def check_frozen(config: Any, groups: Sequence[str]) -> None:
    """Checks that the names in `config.optimizer.frozen` are parameter groups of the run.

    Args:
      config: `config.optimizer` of the run.
      groups: the top-level parameter groups of the run.

    Raises:
      UserError: a name is unknown, or all groups are frozen.
    """
    if unknown := sorted(set(config.frozen) - set(groups)):
        raise UserError(
            f"config.optimizer.frozen contains {unknown[0]!r}, which is not a parameter group: use "
            f"{', '.join(groups)}"
        )
    if set(groups) <= set(config.frozen):
        raise UserError(
            f"config.optimizer.frozen={tuple(config.frozen)} contains all parameter groups, so "
            "nothing would be trained: leave out those that should be trained"
        )


def make_optimizer(
    config: Any, frozen_groups: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Makes AdamW with global-norm clipping and masked weight decay. Frozen groups are not updated.

    A `clip_norm` of 0 switches the clipping off.

    `update(..., learning_rate=rate)` applies the given rate. `update(..., finite=False)` returns
    the state unchanged, even if the gradients are not finite.

    Args:
      config: `config.optimizer` of the run.
      frozen_groups: parameter groups that are not updated, in addition to `config.frozen`.
    """
    adamw = optax.chain(
        _adam(*config.betas, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        _scale_by_given_rate(),
    )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    transforms = [clip, adamw]
    return optax.chain(*transforms, _freeze((*config.frozen, *frozen_groups)))


def _scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by minus the rate that is passed to `update`.

    The state counts the updates, like the state of `optax.scale_by_schedule`. The count is not
    used, but is part of the checkpoint format.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, learning_rate, finite=True, **rest):
        del params, rest
        count = state.count + jnp.asarray(finite, jnp.int32)
        scaled = jax.tree.map(lambda u: jnp.asarray(-learning_rate, u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def update_if_finite(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` so that `update(..., finite=False)` returns the state unchanged."""

    def update(updates, state, params=None, *, finite=True, **rest):
        del rest
        updates, new = tx.update(updates, state, params)
        return updates, jax.tree.map(lambda n, old: jnp.where(finite, n, old), new, state)

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
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), state

    return optax.GradientTransformationExtraArgs(moments.init, update)


def _freeze(names: Sequence[str]) -> optax.GradientTransformation:
    """Sets the updates of the named parameter groups to zero."""

    def mask(updates):
        return {name: name in names for name in updates}

    return optax.masked(optax.set_to_zero(), mask)
