import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from invnext_jax.training import optimizer
from invnext_jax.training.state import TrainState
from invnext_jax.training.step import make_train_step

CONFIG = ConfigDict(
    {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1, "clip_norm": 1.0, "frozen": ()}
)


def schedule(step):
    return 1e-2 / (1 + step)


def draw(seed, rows=8):
    shapes = {"kernel": (rows, rows), "bias": (rows,)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    drawn = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    return {"encoder": {"layer": drawn}}


def reference():
    """The same optimiser, built from optax alone."""
    adamw = optax.adamw(schedule, 0.9, 0.95, eps=1e-6, weight_decay=0.1, mask=optimizer.decay_mask)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def test_update_equals_optax():
    tx, optax_tx = optimizer.make_optimizer(CONFIG, schedule), reference()
    params = expected = draw(0)
    state, optax_state = tx.init(params), optax_tx.init(params)
    for number in range(5):
        grads = draw(1 + number)
        updates, state = tx.update(grads, state, params, finite=jnp.bool_(True))
        params = optax.apply_updates(params, updates)
        updates, optax_state = optax_tx.update(grads, optax_state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params, expected)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), state[:2], optax_state)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nonfinite_gradients_leave_the_state_unchanged(bad):
    tx, params = optimizer.make_optimizer(CONFIG, schedule), draw(0)
    _, before = tx.update(draw(1), tx.init(params), params)
    grads = jax.tree.map(lambda x: x.at[0].set(bad), draw(2))
    _, after = tx.update(grads, before, params, finite=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_update_copies_no_arrays():
    """Parameters and moments are updated in place."""
    params = {f"part{i}": draw(i)["encoder"] for i in range(8)}

    def loss_fn(params, frozen, batch, key):
        return sum(jnp.sum(jnp.sin(x) * batch["x"]) for x in jax.tree.leaves(params)), {}

    tx = optimizer.make_optimizer(CONFIG, schedule)
    zero = jnp.int32(0)
    state = TrainState(zero, params, tx.init(params), zero, zero)
    step = jax.jit(make_train_step(loss_fn, tx, schedule), donate_argnums=0)
    lowered = step.lower(state, {}, {"x": jnp.ones(())}, jax.random.key(0))
    jax.config.update("jax_disable_most_optimizations", False)  # set for all tests in conftest
    try:
        compiled = lowered.compile()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert not re.findall(r"f32\[8\S* copy\(", compiled.as_text())
