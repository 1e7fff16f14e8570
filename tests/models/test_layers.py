"""Layers compared with closed forms, and the residuals that their backward passes save."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from invnext_jax.models import dot_general, layers, scan

X = np.linspace(-12, 12, 4001, dtype=np.float32)


def test_gelu_and_its_derivative_follow_the_normal_distribution():
    x = X.astype(np.float64)
    cdf = special.ndtr(x)
    density = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    gelu = layers.ACTIVATIONS["gelu"]
    np.testing.assert_allclose(gelu(jnp.asarray(X)), x * cdf, atol=2e-6)
    derivative = jax.vmap(jax.grad(gelu))(jnp.asarray(X))
    np.testing.assert_allclose(derivative, cdf + x * density, atol=2e-6)


def test_gelu_in_bfloat16_keeps_its_tail():
    x = jnp.linspace(-3, -1, 41, dtype=jnp.bfloat16)
    found = layers.ACTIVATIONS["gelu"](x)
    assert found.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), exact * special.ndtr(exact), rtol=2**-8
    )


def gelu_tanh(x):
    """The tanh approximation of the GELU in float64, without cancellation, and its derivative."""
    scale = np.sqrt(8 / np.pi)
    share = special.expit(scale * (x + 0.044715 * x**3))
    slope = scale * (1 + 3 * 0.044715 * x**2)
    return x * share, share + x * share * special.expit(-scale * (x + 0.044715 * x**3)) * slope


def test_gelu_tanh_in_bfloat16_keeps_its_tail_and_its_gradient():
    x = jnp.linspace(-4, 4, 129, dtype=jnp.bfloat16)
    activation = layers.ACTIVATIONS["gelu_tanh"]
    gradient = jax.vmap(jax.grad(lambda x: activation(x).astype(jnp.float32)))(x)
    expected, derivative = gelu_tanh(np.asarray(x, np.float64))
    for found, exact in ((activation(x), expected), (gradient, derivative)):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-7)
    assert (gradient[x < -3.25] < 0).all()


def test_quick_gelu_in_bfloat16_keeps_its_tail():
    x = jnp.linspace(-12, 4, 129, dtype=jnp.bfloat16)
    found = layers.ACTIVATIONS["quick_gelu"](x)
    exact = np.asarray(x, np.float64)
    expected = exact * special.expit(1.702 * exact)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8)


def test_gelu_tanh_is_the_approximation():
    expected = gelu_tanh(X.astype(np.float64))[0]
    np.testing.assert_allclose(layers.ACTIVATIONS["gelu_tanh"](jnp.asarray(X)), expected, atol=2e-6)


@pytest.mark.parametrize("activation", sorted(layers.ACTIVATIONS))
def test_mlp_saves_only_input_and_output_of_its_activation(activation):
    b, n, d, f = 2, 8, 4, 16
    mlp = layers.Mlp(f, jnp.float32, activation=activation)
    x = jnp.ones((b, n, d))
    params = nn.unbox(mlp.init(jax.random.key(0), x)["params"])
    _, vjp_fn = jax.vjp(lambda params, x: mlp.apply({"params": params}, x), params, x)
    saved = [leaf for leaf in jax.tree.leaves(vjp_fn) if leaf.size == b * n * f]
    assert len(saved) == 2


def test_norm_saves_only_its_input():
    norm = layers.RMSNorm(jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 8, 4))
    params = norm.init(jax.random.key(1), x)["params"]
    _, vjp_fn = jax.vjp(lambda x: norm.apply({"params": params}, x), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(vjp_fn)) <= x.size + 4


def test_rate_zero_draws_no_random_bits():
    class Stack(nn.Module):
        rate: float

        @nn.compact
        def __call__(self, x):
            block = layers.Block(2, 32, 0.5, jnp.float32, name="blocks")
            return scan.scan_blocks(block, x, depth=2, drop_path=self.rate)[0]

    x, key = jnp.ones((2, 5, 16)), {"droppath": jax.random.key(2)}
    params = nn.unbox(Stack(0.0).init(jax.random.key(1), x)["params"])

    def draws(rate):
        run = jax.make_jaxpr(lambda x: Stack(rate).apply({"params": params}, x, rngs=key))
        return "random_bits" in str(run(x))

    assert draws(0.5) and not draws(0.0)


@pytest.mark.parametrize("format_name", ["", "int8"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_merged_heads_are_those_of_a_linear_layer(monkeypatch, platform, format_name):
    rng = np.random.default_rng(0)
    x_bnhe = rng.standard_normal((2, 5, 3, 8), np.float32)
    layer = layers.MergeHeads(16, jnp.float32)
    linear = layers.dense(16, ("heads", "embed"), name=None, dtype=jnp.float32)
    params, expected = (
        nn.unbox(module.init(jax.random.key(0), x))
        for module, x in ((layer, x_bnhe), (linear, x_bnhe.reshape(2, 5, 24)))
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    params["params"]["bias"] = rng.standard_normal(16, np.float32)
    monkeypatch.setattr(layers, "target_platform", lambda: platform)
    with dot_general.quantization(format_name):
        found = layer.apply(params, x_bnhe)
        expected = linear.apply(params, x_bnhe.reshape(2, 5, 24))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    contracted = jax.make_jaxpr(lambda x: layer.apply(params, x))(x_bnhe)
    assert ("([2, 3], [0, 1])" in str(contracted)) == (platform == "tpu")
