"""Gathering and broadcasting tokens, and their gradients, compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax.models import gather


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 5, 3)])
def test_gradient_of_broadcast_is_sum_over_copies(shape):
    rng = np.random.default_rng(0)
    x, gradient = rng.standard_normal(shape), rng.standard_normal((4, *shape))
    copies, vjp_fn = jax.vjp(lambda x: gather.broadcast_leading(x, 4), jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(copies, np.broadcast_to(x.astype(np.float32), (4, *shape)))
    (found,) = vjp_fn(jnp.asarray(gradient, jnp.float32))
    np.testing.assert_allclose(found, gradient.sum(0), atol=1e-6)


def test_gradient_of_gathered_rows_is_added_to_their_rows():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((6, 3)), jnp.float32)
    index = jnp.array([[0, 2, 5], [5, 1, 0]])
    weights = jnp.asarray(rng.standard_normal((2, 3, 3)), jnp.float32)
    found = jax.grad(lambda table: jnp.sum(weights * gather.gather_rows(table, index)))(table)
    expected = np.zeros((6, 3))
    np.add.at(expected, np.asarray(index), np.asarray(weights))
    np.testing.assert_allclose(found, expected, atol=1e-6)
