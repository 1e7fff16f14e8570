"""Diffusion compared with closed forms, and the gradient of the variational bound."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from invnext_jax.objectives import diffusion

SCHEDULE = diffusion.cosine_schedule(1000)


def test_posterior_is_bayes_rule():
    # q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): two Gaussians.
    t, x0, xt = 400, 0.3, -0.7
    beta, previous = SCHEDULE.betas[t], SCHEDULE.alphas_cumprod[t - 1]
    precision = (1 - beta) / beta + 1 / (1 - previous)
    mean = (np.sqrt(1 - beta) * xt / beta + np.sqrt(previous) * x0 / (1 - previous)) / precision
    np.testing.assert_allclose(SCHEDULE.posterior_variance[t], 1 / precision, rtol=1e-9)
    actual = SCHEDULE.posterior_start[t] * x0 + SCHEDULE.posterior_noised[t] * xt
    np.testing.assert_allclose(actual, mean, rtol=1e-9)


def test_bound_at_step_zero_is_the_probability_of_a_pixel_bin():
    x, mean, log_scale = np.array([[0.1, -1.0, 1.0]]), np.array([[0.12, -0.98, 0.97]]), np.log(0.05)
    actual = diffusion._discretized_log_likelihood(jnp.asarray(x), mean, log_scale)
    normal = stats.norm(mean, 0.05)
    upper = np.where(x > 0.999, 1.0, normal.cdf(x + 1 / 255))
    lower = np.where(x < -0.999, 0.0, normal.cdf(x - 1 / 255))
    np.testing.assert_allclose(actual, np.log(upper - lower), rtol=0.02)  # a tanh approximation


def test_gradient_of_the_bound_reaches_only_the_variance():
    rng = np.random.default_rng(0)
    start, noise, output = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 6))
    t = jnp.array([0, 1, 10, 500, 999])
    noised = diffusion.add_noise(SCHEDULE, start, t, noise)

    def bound(output):
        return jnp.sum(diffusion.loss_terms(SCHEDULE, output, start, noised, t, noise).bound)

    gradient = jax.grad(bound)(jnp.asarray(output))
    assert (gradient[:, :3] == 0).all() and (gradient[:, 3:] != 0).all()


def test_sampling_with_exact_noise_prediction_recovers_the_data():
    # The data is one point, so the exact noise prediction is known and sampling must return it.
    point = jnp.array([[0.5, -0.25]])

    def model(x, t):
        alpha = jnp.asarray(SCHEDULE.alphas_cumprod, jnp.float32)[t][:, None]
        noise = (x - jnp.sqrt(alpha) * point) / jnp.sqrt(1 - alpha)
        return jnp.concatenate([noise, -jnp.ones_like(noise)], axis=-1)

    key = jax.random.key(0)
    schedule = diffusion.respace_schedule(SCHEDULE, 50)
    noises = jax.random.normal(key, (50, 8, 2))
    states = diffusion.sample(model, schedule, noises, jax.random.normal(key, (8, 2)), 1.0)
    np.testing.assert_allclose(states[-1], np.tile(point, (8, 1)), atol=1e-3)
