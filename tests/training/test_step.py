import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invnext_jax.training import optimizer
from invnext_jax.training.state import TrainState, init_copies
from invnext_jax.training.step import make_train_step

RATE = 0.5


def loss_fn(params, frozen, batch, key):
    """Half the squared distance of w from x, in one dimension; gradient w - x."""
    loss = 0.5 * (params["w"] - batch["x"]) ** 2 * frozen["scale"]
    return loss, {"loss/drawn": jax.random.uniform(key)}


def make_state(w=1.0):
    tx = optimizer.guarded(optax.sgd(RATE, momentum=0.9))
    zero = jnp.int32(0)
    params = {"w": jnp.float32(w)}
    return tx, TrainState(zero, params, tx.init(params), zero, zero)


def make_step(tx):
    step = jax.jit(make_train_step(loss_fn, tx, lambda updates: RATE * updates))
    frozen, key = {"scale": jnp.float32(1.0)}, jax.random.key(0)
    return lambda state, x: step(state, frozen, {"x": jnp.float32(x)}, key)


def test_a_step_is_gradient_descent():
    tx, state = make_state(w=1.0)
    state, measured = make_step(tx)(state, 3.0)
    assert float(state.params["w"]) == 1.0 - RATE * (1.0 - 3.0)
    assert float(measured["loss"]) == 2.0
    assert float(measured["grad_norm"]) == 2.0
    assert int(state.step) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nonfinite_step_changes_nothing_but_the_counters(bad):
    tx, state = make_state()
    step = make_step(tx)
    before, _ = step(state, 3.0)
    after, measured = step(before, bad)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (2, 1, 1)
    assert int(measured["nonfinite"]) == 1
    assert not np.isfinite(measured["loss"])


def test_a_finite_step_ends_the_row_of_skipped_ones():
    tx, state = make_state()
    step = make_step(tx)
    rows = []
    for x in (np.nan, np.nan, 1.0, np.nan):
        state, measured = step(state, x)
        rows.append((int(measured["skipped"]), int(measured["skipped_in_row"])))
    assert rows == [(1, 1), (2, 2), (2, 0), (3, 1)]


def test_a_loss_that_is_finite_with_a_gradient_that_is_not_is_skipped():
    tx, state = make_state(w=0.0)

    def root(params, frozen, batch, key):
        return jnp.sqrt(params["w"]), {}

    state, measured = make_train_step(root, tx, lambda _: RATE)(state, {}, {}, jax.random.key(0))
    assert int(measured["nonfinite"]) == 1
    assert float(state.params["w"]) == 0.0


def test_the_key_follows_from_the_step_alone():
    tx, state = make_state()
    step = make_step(tx)
    state1, first = step(state, 3.0)
    _, second = step(state1, 3.0)
    _, again = step(state, 5.0)
    assert float(first["loss/drawn"]) == float(again["loss/drawn"])
    assert float(first["loss/drawn"]) != float(second["loss/drawn"])


def test_the_learning_rate_logged_is_that_of_the_updates_made():
    tx, state = make_state()
    step = make_step(tx)
    rates = []
    for x in (1.0, np.nan, 1.0):
        state, measured = step(state, x)
        rates.append(float(measured["learning_rate"]))
    assert rates == [0.0, RATE, RATE]


def test_a_copy_follows_its_group_by_the_closed_form():
    tx, state = make_state(w=1.0)
    state = init_copies(state, {"target": "w"})
    momentum, key = 0.9, jax.random.key(0)

    def distance(params, frozen, batch, key):
        return 0.5 * (params["w"] - batch["x"]) ** 2, {"seen": frozen["target"]}

    following = ({"target": "w"}, momentum)
    step = jax.jit(make_train_step(distance, tx, lambda _: RATE, following))
    starts, weights = [1.0], []
    for x in (3.0, -2.0, np.nan, 5.0):
        state, measured = step(state, {}, {"x": jnp.float32(x)}, key)
        weights.append(float(state.params["w"]))
        np.testing.assert_allclose(measured["seen"], starts[-1], rtol=1e-6)  # that before the step
        moved = momentum * starts[-1] + (1 - momentum) * weights[-1]
        starts.append(starts[-1] if np.isnan(x) else moved)
    # After n steps: m^n w_0 plus the sum of (1 - m) m^(n - i) w_i over the steps that were made.
    made = [weights[0], weights[1], weights[3]]
    closed = momentum**3 + sum(0.1 * momentum ** (2 - i) * w for i, w in enumerate(made))
    np.testing.assert_allclose(state.follow["target"], closed, rtol=1e-6)


def test_what_follows_starts_where_its_group_stands_in_buffers_of_its_own():
    _, state = make_state(w=2.0)
    following = init_copies(state, {"target": "w"})
    assert float(following.follow["target"]) == 2.0
    following.params["w"].delete()
    assert float(following.follow["target"]) == 2.0


def noisy_loss(params, frozen, batch, key):
    """Half the squared distance from noisy data; what is drawn depends on key and batch size."""
    x_b = batch["x"] + jax.random.normal(key, batch["x"].shape)
    loss = 0.5 * jnp.mean((params["w"] - x_b) ** 2)
    return loss, {"loss/noisy": loss, "drawn": jnp.mean(x_b)}


def test_accumulated_gradients_are_the_mean_over_the_parts_each_with_its_own_key():
    tx, state = make_state(w=1.0)
    batch = {"x": jnp.arange(12.0)}
    root_key = jax.random.key(7)
    step = jax.jit(make_train_step(noisy_loss, tx, lambda _: RATE, accumulate=3))
    after, measured = step(state, {}, batch, root_key)
    losses, grads = [], []
    for i in range(3):
        key = jax.random.fold_in(jax.random.fold_in(root_key, 0), i)
        x_b = np.arange(12.0)[i::3] + np.asarray(jax.random.normal(key, (4,)))
        losses.append(0.5 * np.mean((1.0 - x_b) ** 2))
        grads.append(np.mean(1.0 - x_b))
    np.testing.assert_allclose(measured["loss"], np.mean(losses), rtol=1e-6)
    np.testing.assert_allclose(measured["loss/noisy"], np.mean(losses), rtol=1e-6)
    np.testing.assert_allclose(measured["grad_norm"], abs(np.mean(grads)), rtol=1e-5)
    np.testing.assert_allclose(after.params["w"], 1.0 - RATE * np.mean(grads), rtol=1e-5)


def test_without_randomness_an_accumulated_step_is_that_of_the_whole_batch():
    def distance(params, frozen, batch, key):
        return 0.5 * jnp.mean((params["w"] - batch["x"]) ** 2), {}

    batch, key = {"x": jnp.arange(12.0) ** 2}, jax.random.key(0)
    results = []
    for parts in (1, 2, 6):
        tx, state = make_state(w=1.0)
        step = jax.jit(make_train_step(distance, tx, lambda _: RATE, accumulate=parts))
        state, measured = step(state, {}, batch, key)
        results.append([float(state.params["w"]), float(measured["loss"])])
    np.testing.assert_allclose(results, [results[0]] * 3, rtol=1e-6)


def test_the_moving_average_follows_the_closed_form_and_skips_what_is_skipped():
    tx, state = make_state(w=1.0)
    state = init_copies(state, {}, ema=True)
    step = jax.jit(make_train_step(loss_fn, tx, lambda _: RATE, ema_decay=0.9))
    averages, frozen, key = [1.0], {"scale": jnp.float32(1.0)}, jax.random.key(0)
    for x in (3.0, np.nan, 5.0):
        state, _ = step(state, frozen, {"x": jnp.float32(x)}, key)
        moved = 0.9 * averages[-1] + 0.1 * float(state.params["w"])
        averages.append(averages[-1] if np.isnan(x) else moved)
        np.testing.assert_allclose(state.ema["w"], averages[-1], rtol=1e-6)
