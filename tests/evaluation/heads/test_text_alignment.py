"""Text alignment head: parameters, unit vectors, temperature, and the kinds of loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax.evaluation.heads import text_alignment
from invnext_jax.evaluation.heads.text_alignment import TextAlignment
from invnext_jax.models.heads import AttentionPool
from invnext_jax.training import mesh as mesh_lib


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def test_parameters_without_and_with_a_pool():
    without = TextAlignment(8).init(jax.random.key(0), jnp.ones((2, 12)))["params"]
    assert count(without) == 2 * 12 + 12 * 8 + 8
    head = TextAlignment(8, pool_width=16, pool_heads=3)
    params = head.init(jax.random.key(0), jnp.ones((2, 5, 12)))["params"]
    assert count(params) == 3 * 24 + 3 * (144 + 12) + 12 * 16 + 16 + 2 * 16 + 16 * 8 + 8
    # A pool of a checkpoint has the same parameters.
    pool = AttentionPool(16, 3, jnp.float32).init(jax.random.key(0), jnp.ones((2, 5, 12)))
    assert jax.tree.map(jnp.shape, params["pool"]) == jax.tree.map(jnp.shape, pool["params"])


def test_outputs_are_unit_vectors_of_the_linear_layer_on_normalized_features():
    x_bd = jax.random.normal(jax.random.key(1), (3, 12))
    params = mesh_lib.unbox(TextAlignment(8).init(jax.random.key(0), x_bd)["params"])
    out_bd = TextAlignment(8).apply({"params": params}, 7 * x_bd + 3)
    x_bd = np.asarray(x_bd, np.float64)
    norm_bd = (x_bd - x_bd.mean(1, keepdims=True)) / x_bd.std(1, keepdims=True)
    expected_bd = norm_bd @ np.asarray(params["proj"]["kernel"], np.float64)
    expected_bd /= np.linalg.norm(expected_bd, axis=1, keepdims=True)
    np.testing.assert_allclose(out_bd, expected_bd, atol=1e-5)


@pytest.mark.parametrize(("temperature", "scale"), [(0.07, 1 / 0.07), (0.01, 100), (0.001, 100)])
def test_temperature_is_limited_and_keeps_its_gradient(temperature, scale):
    params = text_alignment.init_scale("info_nce", temperature)
    value, gradient = jax.value_and_grad(text_alignment.inverse_temperature)(params)
    np.testing.assert_allclose(value, scale, rtol=1e-5)
    np.testing.assert_allclose(gradient["log_temperature"], -scale, rtol=1e-5)


@pytest.mark.parametrize("loss", text_alignment.LOSSES)
def test_loss_is_lower_for_true_pairs(loss):
    params = text_alignment.init_scale(loss, 0.1)
    x_bd, ids = jnp.eye(4), jnp.arange(4)
    right = text_alignment.alignment_loss(params, x_bd, x_bd, ids, ids)
    wrong = text_alignment.alignment_loss(params, x_bd, x_bd[::-1], ids, ids)
    assert right < wrong


def test_sigmoid_loss_counts_equal_captions_as_matches():
    params = text_alignment.init_scale("sigmoid", 0.1)
    x_bd = jnp.ones((2, 1))
    ids, same = jnp.arange(2), jnp.zeros(2, int)
    loss = text_alignment.alignment_loss(params, x_bd, x_bd, ids, same)
    np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-5)  # four logits of 10 - 10
