import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.objectives import losses


def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(500, 8)) - 0.0)
    q = q - q.mean(0)
    q, _ = np.linalg.qr(q)
    np.testing.assert_allclose(losses.effective_rank(jnp.asarray(q)), 8, rtol=1e-3)
    one = np.outer(rng.normal(size=50), rng.normal(size=8))
    np.testing.assert_allclose(losses.effective_rank(jnp.asarray(one)), 1, rtol=1e-3)


def test_position_share_is_one_for_positions_and_zero_for_content():
    rng = np.random.default_rng(0)
    code = np.repeat(rng.normal(size=(1, 6, 4)), 9, axis=0)
    np.testing.assert_allclose(losses.position_share(jnp.asarray(code)), 1, atol=1e-6)
    content = np.repeat(rng.normal(size=(9, 1, 4)), 6, axis=1)
    np.testing.assert_allclose(losses.position_share(jnp.asarray(content)), 0, atol=1e-6)


def test_cosine_loss_is_the_squared_distance_of_unit_vectors():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, 3, 5, 7)))
    np.testing.assert_allclose(losses.cosine_loss(a, b), ((a - b) ** 2).sum(-1).mean(), rtol=1e-5)


def test_feature_std_and_tree_norm():
    x = np.random.default_rng(0).normal(size=(4, 5, 3))
    np.testing.assert_allclose(
        losses.feature_std(jnp.asarray(x)), x.reshape(-1, 3).std(0).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(losses.tree_norm({"a": jnp.ones((3,)), "b": jnp.ones(())}), 2.0)
    assert jax.grad(lambda v: losses.tree_norm({"a": v}))(jnp.ones((4,))).shape == (4,)


def test_gradient_norms_of_each_term():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array(2.0)}
    norms = losses.gradient_norms(
        lambda p: {"square": 0.5 * jnp.sum(p["a"] ** 2), "product": p["b"] * p["a"][0]}, params
    )
    np.testing.assert_allclose(norms["square"], 5.0)
    np.testing.assert_allclose(norms["product"], np.hypot(2.0, 3.0), rtol=1e-6)


def test_masked_mean_equals_numpy_and_is_zero_without_values():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(4, 6)).astype(np.float32), rng.random((4, 6)) < 0.5
    mask[1] = False
    values[~mask] = np.nan
    expected = np.ma.masked_array(values, ~mask)
    np.testing.assert_allclose(losses.masked_mean(values, mask), expected.mean(), rtol=1e-6)
    rows = losses.masked_mean(values, mask, axis=1)
    np.testing.assert_allclose(rows, expected.mean(axis=1, keepdims=True).filled(0), rtol=1e-6)
