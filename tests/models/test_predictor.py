"""V-JEPA's predictor: invariances and positions; partial output of ModernBERT's last layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage2
from invnext_jax.errors import UserError
from invnext_jax.models import attention, predictor

GRID = (2, 4, 4)


@pytest.fixture(scope="module")
def config():
    config = stage2.get_config("tiny")
    config.encoder.update(width=32, frames=2)
    config.predictor.update(kind="vjepa", width=48, depth=2, heads=2, mlp_width=32)
    return config


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    order_bn = np.stack([rng.permutation(32) for _ in range(3)]).astype(np.int32)
    keep_bk, masked_bm = np.sort(order_bn[:, :10], axis=1), np.sort(order_bn[:, 10:], axis=1)
    return rng.standard_normal((3, 4 + 10, 32), np.float32), keep_bk, masked_bm


@pytest.fixture(scope="module")
def run(config, inputs):
    model = predictor.from_config(config)
    params = jax.jit(model.init, static_argnums=4)(jax.random.key(0), *inputs, GRID)["params"]
    params = jax.tree.map(lambda x: x, params)
    assert not np.any(jax.tree.leaves(params["mask_token"])[0])
    apply = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs, GRID))
    return params, apply


def test_parameter_count_equals_closed_form(run):
    params, _ = run
    assert set(params) == {"embed", "mask_token", "blocks", "norm"}  # no table: positions are fixed
    sizes = sum(leaf.size for leaf in jax.tree.leaves(params))
    block = 4 * (48 * 48 + 48) + 2 * 48 * 32 + 32 + 48 + 4 * 48
    assert sizes == (32 * 48 + 48) + 48 + 2 * block + 2 * 48


def test_clips_of_a_batch_are_independent(run, inputs):
    params, apply = run
    z_bmd = apply(params, *inputs)
    assert z_bmd.shape == (3, 22, 48) and z_bmd.dtype == jnp.float32
    order = np.array([2, 0, 1])
    again = apply(params, *(x[order] for x in inputs))
    np.testing.assert_allclose(again, z_bmd[order], rtol=1e-4, atol=1e-5)


def test_order_of_tokens_does_not_matter_but_positions_do(run, inputs):
    params, apply = run
    tokens, keep, masked = inputs
    z_bmd = apply(params, *inputs)
    reverse = np.arange(22)[::-1]
    np.testing.assert_allclose(
        apply(params, tokens, keep, masked[:, reverse]), z_bmd[:, reverse], rtol=1e-4, atol=1e-5
    )
    back = np.r_[np.arange(4), 4 + np.arange(10)[::-1]]
    swapped = apply(params, tokens[:, back], keep[:, ::-1], masked)
    np.testing.assert_allclose(swapped, z_bmd, rtol=1e-4, atol=1e-5)
    moved = apply(params, tokens, keep[:, ::-1], masked)
    assert np.abs(moved - z_bmd).max() > 1e-4
    assert np.abs(z_bmd[:, 0] - z_bmd[:, 1]).max() > 1e-3  # masked tokens differ only by position


def test_zero_initialised_mask_token_gets_a_gradient(run, inputs):
    params, apply = run
    weights = np.random.default_rng(1).standard_normal((3, 22, 48), np.float32)

    def loss(params):
        return jnp.sum(apply(params, *inputs) * weights)

    gradients = jax.grad(loss)(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["mask_token"]))


def test_unknown_kind_and_invalid_width_are_errors(config):
    wrong = config.copy_and_resolve_references()
    wrong.predictor.width = 40
    with pytest.raises(
        UserError, match="predictor.width=40 of kind 'vjepa' must be divisible by 16"
    ):
        predictor.check_config(wrong)
    wrong.predictor.kind = "rnn"
    with pytest.raises(UserError, match="'rnn' must be one of 'modernbert', 'vit', 'vjepa'"):
        predictor.check_config(wrong)


@pytest.mark.parametrize("kind", predictor.KINDS)
def test_chosen_latents_equal_those_of_a_full_prediction(kind, config, inputs):
    config = config.copy_and_resolve_references()
    config.predictor.update(kind=kind, last_layer=27)
    model = predictor.from_config(config)
    params = jax.jit(model.init, static_argnums=4)(jax.random.key(0), *inputs, GRID)
    chosen_bm = np.array([[0, 5, 21], [1, 2, 3], [7, 8, 20]])
    run = jax.jit(lambda chosen_bm: model.apply(params, *inputs, GRID, chosen_bm))
    full_bmd = np.asarray(run(None))
    expected_bmd = np.take_along_axis(full_bmd, chosen_bm[:, :, None], axis=1)
    np.testing.assert_allclose(run(chosen_bm), expected_bmd, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", predictor.KINDS)
def test_hidden_tokens_do_not_change_the_prediction(kind, config, inputs):
    config = config.copy_and_resolve_references()
    config.predictor.update(kind=kind, last_layer=27)
    tokens, keep, masked = inputs
    seen_bk = keep < 16  # the first of two frames
    model = predictor.from_config(config)
    params = jax.jit(model.init, static_argnums=4)(jax.random.key(0), *inputs, GRID)
    run = jax.jit(lambda t, seen: model.apply(params, t, keep, masked, GRID, None, seen))
    expected = run(tokens, seen_bk)
    seen_bn = np.pad(seen_bk, ((0, 0), (4, 0)))[..., None]  # class tokens are hidden
    noise = np.random.default_rng(4).standard_normal(tokens.shape, np.float32)
    np.testing.assert_array_equal(run(np.where(seen_bn, tokens, noise), seen_bk), expected)
    assert np.abs(run(np.where(seen_bn, noise, tokens), seen_bk) - expected).max() > 1e-3


@pytest.mark.parametrize("window", [None, 6])
def test_partial_output_of_a_layer_equals_full_output(window):
    rng = np.random.default_rng(2)
    x_bnd = rng.standard_normal((2, 30, 16), np.float32)
    output_bm = np.sort(np.stack([rng.permutation(30)[:11] for _ in range(2)]), axis=1)
    layer = predictor.ModernBertLayer(2, 24, window, jnp.float32)
    params = layer.init(jax.random.key(0), x_bnd)
    weights = rng.standard_normal((2, 11, 16), np.float32)

    def product(params, x_bnd, partial):
        if partial:
            y_bmd = layer.apply(params, x_bnd, output_bm)
        else:
            y_bmd = jnp.take_along_axis(layer.apply(params, x_bnd), output_bm[:, :, None], axis=1)
        return jnp.vdot(y_bmd, weights)

    found, expected = (
        jax.value_and_grad(product, (0, 1))(params, x_bnd, partial) for partial in (True, False)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_tokens_padded_for_splash_attention_do_not_change_the_prediction(
    config, inputs, monkeypatch
):
    monkeypatch.setattr(attention, "MAX_PADDING", 1e3)  # the clips are short
    config = config.copy_and_resolve_references()
    config.predictor.update(kind="modernbert", depth=3, last_layer=26, window=8)  # one global layer
    model = predictor.from_config(config)
    params = jax.jit(model.init, static_argnums=4)(jax.random.key(0), *inputs, GRID)
    weights = np.random.default_rng(3).standard_normal((3, 22, 48), np.float32)

    def graded(chosen):
        def loss(params):
            z_bmd = model.apply(params, *inputs, GRID)
            return jnp.sum(z_bmd * weights), z_bmd

        with attention.kernel(chosen):
            return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    with attention.record_choices() as choices:
        actual = graded("splash")
    assert {choice.keys for choice in choices} == {128}
    expected = graded("naive")
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        largest = max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * largest)
