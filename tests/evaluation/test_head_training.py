import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training as ht

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 5)).astype(np.float32)
Y = (X @ RNG.normal(size=5) + 0.3).astype(np.float32)
OPTIONS = ht.HeadOptions((1e-2, 3e-2), (0.0, 0.5), total_steps=24, warmup_steps=4, batch_size=16)


def init(key):
    return {"kernel": jax.random.normal(key, (5, 1)), "bias": jnp.zeros(1)}


def loss(params, batch, key):
    del key
    predicted = (batch["x"] @ params["kernel"] + params["bias"][None])[:, 0]
    return jnp.mean((predicted - batch["y"]) ** 2)


def open_batches(first_step):
    for step in itertools.count(first_step):
        rows = np.random.default_rng(step).integers(64, size=16)
        yield {"x": X[rows], "y": Y[rows]}


HEAD = ht.Head(init, loss)


def train(options=OPTIONS, head=HEAD, batches=open_batches, devices=None, **arguments):
    mesh = ht.make_mesh(devices or options.batch_size)
    return ht.train_heads(head, batches, options, mesh=mesh, **arguments)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def reference(rate, decay, steps, warmup):
    """AdamW with warm-up and cosine decay in float64, in a loop."""
    params = {k: np.asarray(v, np.float64) for k, v in init(jax.random.key(0)).items()}
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    for n, batch in zip(range(1, steps + 1), open_batches(0), strict=False):
        error = (batch["x"] @ params["kernel"])[:, 0] + params["bias"] - batch["y"]
        grads = {"kernel": 2 * batch["x"].T @ error[:, None] / 16, "bias": [2 * error.mean()]}
        share = (
            n / warmup if n < warmup else (1 + np.cos(np.pi * (n - warmup) / (steps - warmup))) / 2
        )
        for k, grad in grads.items():
            grad = np.asarray(grad)
            first[k] = 0.9 * first[k] + 0.1 * grad
            second[k] = 0.999 * second[k] + 0.001 * grad**2
            change = first[k] / (1 - 0.9**n) / (np.sqrt(second[k] / (1 - 0.999**n)) + 1e-8)
            params[k] = params[k] - rate * share * (change + (k == "kernel") * decay * params[k])
    return params


def test_each_head_is_trained_by_adamw_with_its_own_options():
    got = train()
    assert [tuple(member.values()) for member in OPTIONS.grid] == [
        (1e-2, 0.0),
        (1e-2, 0.5),
        (3e-2, 0.0),
        (3e-2, 0.5),
    ]
    for i, member in enumerate(OPTIONS.grid):
        expected = reference(*member.values(), 24, 4)
        for name, value in expected.items():
            np.testing.assert_allclose(got.params[name][i], value, rtol=1e-4, atol=1e-5)
    assert [point["step"] for point in got.curve] == [10, 20, 24]


@pytest.mark.parametrize("heads_at_once", [1, 3])
def test_number_of_heads_at_once_does_not_matter(heads_at_once):
    options = dataclasses.replace(OPTIONS, heads_at_once=heads_at_once)
    assert_close(train(options).params, train().params)


def test_number_of_devices_does_not_matter():
    assert ht.make_mesh(16).size == 8 and ht.make_mesh(7).size == 7 and ht.make_mesh(11).size == 1
    assert_close(train(devices=1).params, train().params)


def test_a_killed_training_continues_from_its_state(tmp_path, monkeypatch):
    monkeypatch.setattr(ht, "SAVE_SECONDS", 0.0)
    expected, file = train(), tmp_path / "state.npz"

    def broken(first_step):
        yield from itertools.islice(open_batches(first_step), 17 - first_step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(batches=broken, state_file=file, key="a")
    starts = []

    def counted(first_step):
        starts.append(first_step)
        return open_batches(first_step)

    got = train(batches=counted, state_file=file, key="a")
    assert starts == [10]
    assert_close(got.params, expected.params)
    assert [point["step"] for point in got.curve] == [10, 20, 24]
    train(batches=counted, state_file=file, key="a")  # nothing is left to do
    train(batches=counted, state_file=file, key="other encoder")
    file.write_bytes(b"PK\x03\x04 damaged")
    train(batches=counted, state_file=file, key="a")
    assert starts == [10, 24, 0, 0]


def test_features_are_computed_from_the_frozen_parameters():
    def features(frozen, batch, key):
        return {"x": batch["x"] * frozen["scale"], "y": batch["y"]}

    got = train(head=ht.Head(init, loss, features), frozen={"scale": np.float32(1.0)})
    assert_close(got.params, train().params)


def test_a_head_that_diverges_does_not_end_the_others():
    def fragile(params, batch, key):
        value = loss(params, batch, key)
        return jnp.where(jnp.abs(params["bias"][0]) > 0.1, jnp.nan, value)

    options = ht.HeadOptions((1e-4, 10.0), (0.0,), 24, 0, 16)
    got = train(options, ht.Head(init, fragile))
    assert got.skipped_g[0] == 0 and got.skipped_g[1] > 20
    assert np.isfinite(got.params["kernel"]).all()


def test_features_that_are_not_finite_end_with_one_sentence():
    def bad(first_step):
        for batch in open_batches(first_step):
            yield {"x": batch["x"] * np.nan, "y": batch["y"]}

    with pytest.raises(UserError, match="step 10: the loss of no head is finite"):
        train(batches=bad)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rates", (), "must be one or more numbers, positive"),
        ("learning_rates", (1e-3, 0), "must be one or more numbers, positive"),
        ("weight_decays", (-1,), "must be one or more numbers, not negative"),
        ("batch_size", 0, "batch_size=0 must be positive"),
        ("epochs", 0, "epochs=0 must be positive"),
        ("warmup_epochs", 9, "warmup_epochs=9 must be between 0 and epochs=5"),
    ],
)
def test_bad_options_are_refused(field, value, message):
    config = ml_collections.ConfigDict(
        {
            "learning_rates": (1e-3,),
            "weight_decays": (0.0,),
            "epochs": 5,
            "warmup_epochs": 1,
            "batch_size": 8,
        }
    )
    ht.check_options(config, "config.probe")
    with config.unlocked():
        config[field] = value
    with pytest.raises(UserError, match=rf"config\.probe\.{field}"):
        ht.check_options(config, "config.probe")
    with pytest.raises(UserError, match=message):
        ht.check_options(config, "config.probe")
