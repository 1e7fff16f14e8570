import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import stage1
from invnext_jax.errors import UserError
from invnext_jax.training import optimizer
from invnext_jax.training.state import TrainState, init_ema
from invnext_jax.training.step import check_config, make_train_step

RATE = 0.5
CONSTANT = jax.tree_util.Partial(lambda _: RATE)


def loss_fn(params, frozen, batch, key):
    """Half the squared distance between the scalars w and x; the gradient is w - x."""
    loss = 0.5 * (params["w"] - batch["x"]) ** 2 * frozen["scale"]
    return loss, {"loss/drawn": jax.random.uniform(key)}


def make_state(w=1.0):
    tx = optimizer.update_if_finite(optax.sgd(RATE, momentum=0.9))
    zero = jnp.int32(0)
    params = {"w": jnp.float32(w)}
    return tx, TrainState(zero, params, tx.init(params), zero, zero)


def make_step(tx):
    step = jax.jit(make_train_step(loss_fn, tx))
    schedule = jax.tree_util.Partial(lambda updates: RATE * updates)
    frozen, key = {"scale": jnp.float32(1.0)}, jax.random.key(0)
    return lambda state, x: step(state, frozen, {"x": jnp.float32(x)}, key, schedule)


def test_step_is_gradient_descent():
    tx, state = make_state(w=1.0)
    state, measured = make_step(tx)(state, 3.0)
    assert float(state.params["w"]) == 1.0 - RATE * (1.0 - 3.0)
    assert float(measured["loss"]) == 2.0
    assert float(measured["grad_norm"]) == 2.0
    assert int(state.step) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_step_changes_only_the_counters(bad):
    tx, state = make_state()
    step = make_step(tx)
    before, _ = step(state, 3.0)
    after, measured = step(before, bad)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (2, 1, 1)
    assert int(measured["nonfinite"]) == 1
    assert not np.isfinite(measured["loss"])


def test_finite_step_resets_skipped_in_row():
    tx, state = make_state()
    step = make_step(tx)
    rows = []
    for x in (np.nan, np.nan, 1.0, np.nan):
        state, measured = step(state, x)
        rows.append((int(measured["skipped"]), int(measured["skipped_in_row"])))
    assert rows == [(1, 1), (2, 2), (2, 0), (3, 1)]


def test_finite_loss_with_nonfinite_gradient_is_skipped():
    tx, state = make_state(w=0.0)

    def root(params, frozen, batch, key):
        return jnp.sqrt(params["w"]), {}

    state, measured = make_train_step(root, tx)(state, {}, {}, jax.random.key(0), CONSTANT)
    assert int(measured["nonfinite"]) == 1
    assert float(state.params["w"]) == 0.0


def test_key_depends_on_the_step_number_only():
    tx, state = make_state()
    step = make_step(tx)
    state1, first = step(state, 3.0)
    _, second = step(state1, 3.0)
    _, again = step(state, 5.0)
    assert float(first["loss/drawn"]) == float(again["loss/drawn"])
    assert float(first["loss/drawn"]) != float(second["loss/drawn"])


def test_logged_learning_rate_counts_updates_not_steps():
    tx, state = make_state()
    step = make_step(tx)
    rates = []
    for x in (1.0, np.nan, 1.0):
        state, measured = step(state, x)
        rates.append(float(measured["learning_rate"]))
    assert rates == [0.0, RATE, RATE]


def test_ema_target_matches_the_closed_form():
    tx, state = make_state(w=1.0)
    state = init_ema(state, {"target": "w"})
    momentum, key = 0.9, jax.random.key(0)

    def distance(params, frozen, batch, key):
        return 0.5 * (params["w"] - batch["x"]) ** 2, {"target": frozen["target"]}

    ema_targets = ({"target": "w"}, momentum)
    step = jax.jit(make_train_step(distance, tx, ema_targets))
    starts, weights = [1.0], []
    for x in (3.0, -2.0, np.nan, 5.0):
        state, measured = step(state, {}, {"x": jnp.float32(x)}, key, CONSTANT)
        weights.append(float(state.params["w"]))
        np.testing.assert_allclose(measured["target"], starts[-1], rtol=1e-6)
        moved = momentum * starts[-1] + (1 - momentum) * weights[-1]
        starts.append(starts[-1] if np.isnan(x) else moved)
    # After n updates: m^n w_0 plus the sum of (1 - m) m^(n - i) w_i over updates i = 1 .. n.
    made = [weights[0], weights[1], weights[3]]
    closed = momentum**3 + sum(0.1 * momentum ** (2 - i) * w for i, w in enumerate(made))
    np.testing.assert_allclose(state.follow["target"], closed, rtol=1e-6)


def test_ema_target_starts_as_a_copy_in_separate_buffers():
    _, state = make_state(w=2.0)
    state = init_ema(state, {"target": "w"})
    assert float(state.follow["target"]) == 2.0
    state.params["w"].delete()
    assert float(state.follow["target"]) == 2.0


def noisy_loss(params, frozen, batch, key):
    """Half the squared distance from noisy data; the noise depends on key and batch size."""
    x_b = batch["x"] + jax.random.normal(key, batch["x"].shape)
    loss = 0.5 * jnp.mean((params["w"] - x_b) ** 2)
    return loss, {"loss/noisy": loss, "drawn": jnp.mean(x_b)}


def test_accumulated_gradients_are_the_mean_over_microbatches_with_separate_keys():
    tx, state = make_state(w=1.0)
    batch = {"x": jnp.arange(12.0)}
    root_key = jax.random.key(7)
    step = jax.jit(make_train_step(noisy_loss, tx, accumulate=3))
    after, measured = step(state, {}, batch, root_key, CONSTANT)
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


def test_accumulation_without_randomness_equals_the_full_batch():
    def distance(params, frozen, batch, key):
        return 0.5 * jnp.mean((params["w"] - batch["x"]) ** 2), {}

    batch, key = {"x": jnp.arange(12.0) ** 2}, jax.random.key(0)
    results = []
    for parts in (1, 2, 6):
        tx, state = make_state(w=1.0)
        step = jax.jit(make_train_step(distance, tx, accumulate=parts))
        state, measured = step(state, {}, batch, key, CONSTANT)
        results.append([float(state.params["w"]), float(measured["loss"])])
    np.testing.assert_allclose(results, [results[0]] * 3, rtol=1e-6)


def test_parameter_ema_matches_the_closed_form_and_ignores_skipped_steps():
    tx, state = make_state(w=1.0)
    state = init_ema(state, {}, ema=True)
    step = jax.jit(make_train_step(loss_fn, tx, ema_decay=0.9))
    averages, frozen, key = [1.0], {"scale": jnp.float32(1.0)}, jax.random.key(0)
    for x in (3.0, np.nan, 5.0):
        state, _ = step(state, frozen, {"x": jnp.float32(x)}, key, CONSTANT)
        moved = 0.9 * averages[-1] + 0.1 * float(state.params["w"])
        averages.append(averages[-1] if np.isnan(x) else moved)
        np.testing.assert_allclose(state.ema["w"], averages[-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "config.batch_size=0 must be at least 1"),
        ("accumulate", 0, "config.accumulate=0 must be at least 1"),
        ("seed", -1, "config.seed=-1 must be at least 0"),
        ("ema.decay", 1.0, "config.ema.decay=1.0 must be at least 0 and below 1"),
    ],
)
def test_option_out_of_range_is_an_error(field, value, message):
    config = stage1.get_config("tiny")
    check_config(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        check_config(config)
