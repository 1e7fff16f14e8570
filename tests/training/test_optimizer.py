import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from invnext_jax.errors import UserError
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
    """Returns the same optimizer, built from optax only."""
    adamw = optax.adamw(schedule, 0.9, 0.95, eps=1e-6, weight_decay=0.1, mask=optimizer.decay_mask)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def test_update_equals_optax():
    tx, optax_tx = optimizer.make_optimizer(CONFIG), reference()
    params = expected = draw(0)
    state, optax_state = tx.init(params), optax_tx.init(params)
    for number in range(5):
        grads = draw(1 + number)
        rate = jnp.float32(schedule(number))
        updates, state = tx.update(grads, state, params, finite=jnp.bool_(True), learning_rate=rate)
        params = optax.apply_updates(params, updates)
        updates, optax_state = optax_tx.update(grads, optax_state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params, expected)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), state[:2], optax_state)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nonfinite_gradients_leave_the_state_unchanged(bad):
    tx, params = optimizer.make_optimizer(CONFIG), draw(0)
    _, before = tx.update(draw(1), tx.init(params), params, learning_rate=0.1)
    grads = jax.tree.map(lambda x: x.at[0].set(bad), draw(2))
    _, after = tx.update(grads, before, params, finite=jnp.bool_(False), learning_rate=0.1)
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize(("warmup", "total"), [(0, 50), (1, 50), (20, 50), (60, 50)])
def test_schedule_is_linear_then_cosine(warmup, total):
    config = ConfigDict({"learning_rate": 2e-3, "min_learning_rate": 3e-5, "warmup_steps": warmup})
    rates = jax.vmap(optimizer.make_schedule(config, total))(jnp.arange(total))
    for step, found in enumerate(rates):
        if step < warmup:
            expected = 2e-3 * step / max(warmup - 1, 1)
        else:
            share = (step - warmup) / (total - warmup)
            expected = 3e-5 + (2e-3 - 3e-5) * 0.5 * (1 + np.cos(np.pi * share))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)


def test_another_schedule_does_not_compile_again():
    def loss_fn(params, frozen, batch, key):
        return jnp.sum((params["encoder"]["layer"]["kernel"] - 1) ** 2), {}

    config = ConfigDict({"learning_rate": 0.1, "min_learning_rate": 0.0, "warmup_steps": 0})
    tx, params = optimizer.make_optimizer(CONFIG), draw(0)
    state = TrainState(jnp.int32(0), params, tx.init(params), jnp.int32(0), jnp.int32(0))
    step, rates = jax.jit(make_train_step(loss_fn, tx)), []
    for rate, warmup, total in ((0.1, 0, 10), (0.2, 0, 500), (0.3, 7, 9)):
        config.update(learning_rate=rate, warmup_steps=warmup)
        schedule = optimizer.make_schedule(config, total)
        after, measured = step(state, {}, {}, jax.random.key(0), schedule)
        rates.append(float(measured["learning_rate"]))
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.0])
    assert step._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, params)  # the rate is 0


def test_schedule_of_an_unresolved_config_is_refused():
    config = ConfigDict({"learning_rate": -1.0, "min_learning_rate": 0.0, "warmup_steps": 0})
    with pytest.raises(ValueError, match="resolve its recipe first"):
        optimizer.make_schedule(config, 10)


def test_update_copies_no_arrays():
    """Parameters and moments are updated in place."""
    params = {f"part{i}": draw(i)["encoder"] for i in range(8)}

    def loss_fn(params, frozen, batch, key):
        return sum(jnp.sum(jnp.sin(x) * batch["x"]) for x in jax.tree.leaves(params)), {}

    tx = optimizer.make_optimizer(CONFIG)
    zero = jnp.int32(0)
    state = TrainState(zero, params, tx.init(params), zero, zero)
    step = jax.jit(make_train_step(loss_fn, tx), donate_argnums=0)
    lowered = step.lower(
        state, {}, {"x": jnp.ones(())}, jax.random.key(0), jax.tree_util.Partial(schedule)
    )
    jax.config.update("jax_disable_most_optimizations", False)  # set for all tests in conftest
    try:
        compiled = lowered.compile()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert not re.findall(r"f32\[8\S* copy\(", compiled.as_text())


def test_clip_norm_of_zero_switches_clipping_off():
    changed = CONFIG.copy_and_resolve_references()
    params, grads = draw(0), jax.tree.map(lambda x: 100 * x, draw(1))
    found = []
    for norm in (0.0, 1e9):
        changed.clip_norm = norm
        tx = optimizer.make_optimizer(changed)
        found.append(tx.update(grads, tx.init(params), params, learning_rate=0.1))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": (0.9, 1.5)}, "betas=(0.9, 1.5) must be at least 0 and below 1"),
        ({"betas": (-0.1, 0.9)}, "betas=(-0.1, 0.9) must be at least 0 and below 1"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must be at least 0"),
        ({"clip_norm": float("nan")}, "clip_norm=nan must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    config = CONFIG.copy_and_resolve_references()
    config.update(changes)
    with pytest.raises(UserError, match=re.escape(f"config.optimizer.{message}")):
        optimizer.check_config(config)


@pytest.mark.parametrize("betas", [0.95, (0.9,), (0.9, 0.95, 0.99)])
def test_betas_that_are_not_a_pair_are_refused(betas):
    config = CONFIG.copy_and_resolve_references()
    with config.ignore_type():
        config.betas = betas
    with pytest.raises(UserError, match=r"betas=.* must be a pair of numbers, such as"):
        optimizer.check_config(config)


def test_freezing_all_groups_is_refused():
    config = CONFIG.copy_and_resolve_references()
    config.frozen = ("pool", "encoder")
    optimizer.check_frozen(config, ("encoder", "pool", "predictor"))
    with pytest.raises(UserError, match="contains all parameter groups, so nothing would be"):
        optimizer.check_frozen(config, ("encoder", "pool"))
