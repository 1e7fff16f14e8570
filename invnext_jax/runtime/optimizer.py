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
) -> optax.GradientTransformation:
    """Global-norm clipping, AdamW with masked decay, and no update of `config.frozen` subtrees.

    Args:
      config: fields of `config.optimizer`.
      schedule: learning rate of each step.
      untrained: more subtrees that are not updated.
    """
    adamw = optax.adamw(
        schedule,
        *config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    transforms = [optax.clip_by_global_norm(config.clip_norm), adamw]
    return optax.chain(*transforms, _freeze((*config.frozen, *untrained)))


def _freeze(names: Sequence[str]) -> optax.GradientTransformation:
    def mask(updates):
        return {name: name in names for name in updates}

    return optax.masked(optax.set_to_zero(), mask)
