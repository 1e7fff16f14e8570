"""Heads of a grid do not affect each other, and interrupted training resumes.

The results do not depend on the number of devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_cases import assert_near

from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.evaluation.feature_store.state_file import StateFile
from invnext_jax.evaluation.head_training import HeadTraining
from invnext_jax.monitoring import progress

GRID = head_training.make_grid((1e-2, 1e-1), (0.0, 0.3))
TRAINING = HeadTraining(steps=12, warmup_steps=3, seed=5, save_seconds=0.0)
B, D, K = 16, 6, 3


def init_params(key):
    return {"kernel": 0.1 * jax.random.normal(key, (D, K)), "bias": jnp.zeros(K)}


def loss_fn(params, inputs, key):
    noise_bd = 0.1 * jax.random.normal(key, inputs["x"].shape)
    logits_bk = jnp.matmul(inputs["x"] + noise_bd, params["kernel"], precision="highest")
    logits_bk = logits_bk + params["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits_bk, inputs["y"]).mean()


def batches(step):
    rng = np.random.default_rng(step)
    y_b = rng.integers(K, size=B).astype(np.int32)
    x_bd = rng.normal(size=(B, D)).astype(np.float32)
    x_bd[np.arange(B), y_b] += 2
    return {"x": x_bd, "y": y_b}


def train(grid=GRID, training=TRAINING, **options):
    return head_training.train_heads(init_params, loss_fn, batches, grid, training, **options)


def train_alone(rate, decay, warmup_steps=3):
    """Trains one head in the same way, directly with optax."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, 12)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda count: schedule(count + 1),
            b2=0.999,
            weight_decay=decay,
            mask={"kernel": True, "bias": False},
        ),
    )
    params = init_params(jax.random.key(5))
    state = tx.init(params)
    for step in range(12):
        key = jax.random.split(jax.random.fold_in(jax.random.key(5), step))[1]
        grads = jax.grad(loss_fn)(params, batches(step), key)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_heads_of_a_grid_equal_optax_one_by_one():
    found = train()
    assert found.settings == GRID and not found.diverged_g.any()
    for number, (rate, decay) in enumerate(GRID):
        expected = train_alone(rate, decay)
        head = head_training.select_head(found.params, number)
        jax.tree.map(lambda x, y: assert_near(x, y, 1e-5), head, expected)
    assert found.loss_g[2] < found.loss_g[0]  # a higher rate learns more in twelve steps


def test_a_warm_up_may_be_longer_than_half_of_the_training():
    found = train(GRID[:1], dataclasses.replace(TRAINING, warmup_steps=9))
    expected = train_alone(*GRID[0], warmup_steps=9)
    head = head_training.select_head(found.params, 0)
    jax.tree.map(lambda x, y: assert_near(x, y, 1e-5), head, expected)


def test_heads_do_not_depend_on_the_number_of_devices(monkeypatch):
    assert extraction.local_mesh().size == 8
    eight = train()
    monkeypatch.setattr(extraction.jax, "local_devices", lambda: jax.devices()[:1])
    one = train()
    jax.tree.map(lambda x, y: assert_near(x, y, 1e-5), eight.params, one.params)


def test_killed_training_continues_from_its_last_save(tmp_path):
    expected, asked = train(), []

    def killed(step):
        asked.append(step)
        if step == 8:
            raise KeyboardInterrupt
        return batches(step)

    saved = StateFile(tmp_path / "heads.npz", "key")
    arguments = init_params, loss_fn, killed, GRID, TRAINING
    with pytest.raises(KeyboardInterrupt):
        head_training.train_heads(*arguments, saved=saved)
    assert asked == list(range(9))
    asked.clear()
    found = head_training.train_heads(
        *arguments[:2],
        lambda step: asked.append(step) or batches(step),
        *arguments[3:],
        saved=saved,
    )
    assert 0 < asked[0] <= 8 and asked[-1] == 11
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    again = head_training.train_heads(*arguments[:2], None, *arguments[3:], saved=saved)
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)


@pytest.mark.parametrize("damage", ["key", "bytes"])
def test_other_and_damaged_states_are_not_used(damage, tmp_path):
    path = tmp_path / "heads.npz"
    expected = train(saved=StateFile(path, "key"))
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-30])
    other = train(saved=StateFile(path, "key" if damage == "bytes" else "other"))
    jax.tree.map(np.testing.assert_array_equal, other.params, expected.params)
    with np.load(path) as stored:
        assert str(stored["key"]) == ("key" if damage == "bytes" else "other")


def test_frozen_encoder_runs_once_for_all_heads():
    traces = []

    def prepare(frozen, batch, key):
        traces.append(key)
        return {**batch, "x": batch["x"] @ frozen}

    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0].astype(np.float32)
    found = train(prepare=prepare, frozen=rotation)
    assert len(traces) == 1 and np.isfinite(found.loss_g).all()


def test_a_head_that_diverges_is_marked_and_leaves_the_others_alone():
    def exploding(params, inputs, key):
        return jnp.where(
            jnp.abs(params["kernel"]).max() > 50, jnp.nan, loss_fn(params, inputs, key)
        )

    grid = (*GRID, head_training.HeadSettings(1e4, 0.0))
    found = head_training.train_heads(init_params, exploding, batches, grid, TRAINING)
    np.testing.assert_array_equal(found.diverged_g, [False] * 4 + [True])
    expected = train()
    for number in range(4):
        jax.tree.map(
            lambda x, y: assert_near(x, y, 1e-5),
            head_training.select_head(found.params, number),
            head_training.select_head(expected.params, number),
        )


def test_features_that_are_not_finite_are_a_one_sentence_error():
    def bad(step):
        return {**batches(step), "x": np.full((B, D), np.nan, np.float32)}

    training = HeadTraining(steps=100, warmup_steps=0, seed=0)
    with pytest.raises(UserError, match="probe: the loss of every head is not finite"):
        head_training.train_heads(init_params, loss_fn, bad, GRID, training, name="probe")


def test_progress_shows_the_loss_and_the_time_left(capsys):
    train(name="attentive probe")
    assert "12 of 12 steps" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_progress_of_a_short_training_shows_the_first_and_the_last_step(steps, capsys, monkeypatch):
    meter = functools.partial(progress.ProgressMeter, line_seconds=0.0)
    monkeypatch.setattr(head_training, "ProgressMeter", meter)
    found = train(training=HeadTraining(steps, 0, seed=5), name="probe")
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps" in line]
    assert lines[0].startswith(f"1 of {steps} steps, probe, loss ")
    assert lines[-1].startswith(f"{steps} of {steps} steps, probe, loss {found.loss_g.min():.3g},")


@pytest.mark.parametrize("values", [((), (0.0,)), ((-1.0,), (0.0,)), ((1.0,), (-0.1,))])
def test_invalid_grids_are_refused(values):
    with pytest.raises(UserError, match="weight_decays"):
        head_training.make_grid(*values)
