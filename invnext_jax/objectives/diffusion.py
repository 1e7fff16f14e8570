"""Gaussian diffusion with learned variance: schedules, training loss, and sampler.

The loss is the hybrid objective of improved DDPM (Nichol and Dhariwal 2021): the squared error of
the predicted noise plus the variational bound. The gradient of the bound reaches only the variance.

Shape key: n patches, p pixels of a patch; model outputs are [n, 2p]: noise, then variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]  # (noised_np, t_n) -> [n, 2p]


class Schedule(NamedTuple):
    """Tables of a diffusion process, float64 [steps]. Functions that use them cast them to float32.

    Attributes:
      timesteps: the timestep passed to the model at each step (respaced schedules skip some).
      betas: variance of the noise added by each step.
      alphas_cumprod: fraction of the signal's variance that remains after each step.
      posterior_variance: variance of q(x_{t-1} | x_t, x_0).
      posterior_log_variance: logarithm of `posterior_variance`, except that step 0 uses the value
        of step 1.
      posterior_start: weight of x_0 in the posterior mean.
      posterior_noised: weight of x_t in the posterior mean.
    """

    timesteps: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance: np.ndarray
    posterior_start: np.ndarray
    posterior_noised: np.ndarray


def cosine_schedule(steps: int = 1000) -> Schedule:
    """Returns the cosine schedule, with betas clipped at 0.999."""

    def signal(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    i = np.arange(steps)
    betas = np.minimum(1 - signal((i + 1) / steps) / signal(i / steps), 0.999)
    return _make_schedule(betas, i)


def respace_schedule(schedule: Schedule, steps: int) -> Schedule:
    """Returns a schedule of `steps` evenly spaced steps, including the first and the last one."""
    total = len(schedule.betas)
    stride = (total - 1) / max(steps - 1, 1)
    kept = np.array([round(i * stride) for i in range(steps)])
    signal = schedule.alphas_cumprod[kept]
    betas = 1 - signal / np.concatenate([[1.0], signal[:-1]])
    return _make_schedule(betas, schedule.timesteps[kept])


def _make_schedule(betas: np.ndarray, timesteps: np.ndarray) -> Schedule:
    alphas_cumprod = np.cumprod(1 - betas)
    previous = np.concatenate([[1.0], alphas_cumprod[:-1]])
    variance = betas * (1 - previous) / (1 - alphas_cumprod)
    return Schedule(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        posterior_variance=variance,
        posterior_log_variance=np.log(np.concatenate([variance[1:2], variance[1:]])),
        posterior_start=betas * np.sqrt(previous) / (1 - alphas_cumprod),
        posterior_noised=(1 - previous) * np.sqrt(1 - betas) / (1 - alphas_cumprod),
    )


def _lookup(table: np.ndarray, t_n: jax.Array) -> jax.Array:
    """Returns the entries of a table at steps t, float32 [n 1]."""
    return jnp.asarray(table, jnp.float32)[t_n][:, None]


def add_noise(
    schedule: Schedule, start_np: jax.Array, t_n: jax.Array, noise_np: jax.Array
) -> jax.Array:
    """Samples q(x_t | x_0): float32 [n p]."""
    signal = _lookup(np.sqrt(schedule.alphas_cumprod), t_n)
    return signal * start_np + _lookup(np.sqrt(1 - schedule.alphas_cumprod), t_n) * noise_np


class Posterior(NamedTuple):
    """The Gaussian p(x_{t-1} | x_t) predicted by a model; all fields have shape [n p].

    Attributes:
      mean: mean of x_{t-1}.
      log_variance: logarithm of the variance of x_{t-1}.
      start: estimate of x_0 from the predicted noise.
    """

    mean: jax.Array
    log_variance: jax.Array
    start: jax.Array


def posterior(
    schedule: Schedule, output_np: jax.Array, noised_np: jax.Array, t_n: jax.Array
) -> Posterior:
    """Converts a model output to a Gaussian over x_{t-1}; x_0 is not clipped.

    Args:
      schedule: tables.
      output_np: [n, 2p] predicted noise, then interpolation weight of the log variance.
      noised_np: [n p] patches x_t.
      t_n: int32 steps of the schedule.
    """
    noise_np, share_np = jnp.split(output_np, 2, axis=-1)
    share_np = (share_np + 1) / 2
    largest = _lookup(np.log(schedule.betas), t_n)
    smallest = _lookup(schedule.posterior_log_variance, t_n)
    log_variance_np = share_np * largest + (1 - share_np) * smallest
    start_np = (
        _lookup(np.sqrt(1 / schedule.alphas_cumprod), t_n) * noised_np
        - _lookup(np.sqrt(1 / schedule.alphas_cumprod - 1), t_n) * noise_np
    )
    return Posterior(_posterior_mean(schedule, start_np, noised_np, t_n), log_variance_np, start_np)


def _posterior_mean(schedule, start_np, noised_np, t_n):
    """Returns the mean of q(x_{t-1} | x_t, x_0)."""
    from_start = _lookup(schedule.posterior_start, t_n) * start_np
    return from_start + _lookup(schedule.posterior_noised, t_n) * noised_np


class DiffusionTerms(NamedTuple):
    """Loss terms of each patch, [n].

    Attributes:
      squared_error: mean squared error of the predicted noise.
      bound: variational bound, in bits per pixel value.
    """

    squared_error: jax.Array
    bound: jax.Array


def loss_terms(
    schedule: Schedule,
    output_np: jax.Array,
    start_np: jax.Array,
    noised_np: jax.Array,
    t_n: jax.Array,
    noise_np: jax.Array,
) -> DiffusionTerms:
    """Computes the two terms of the hybrid loss of each patch; their sum is the loss.

    Args:
      schedule: tables.
      output_np: [n, 2p] float32 output of the model for `noised_np`.
      start_np: [n p] clean patches.
      noised_np: [n p] the output of `add_noise`.
      t_n: int32 steps.
      noise_np: [n p] the noise that was added.
    """
    predicted_np, share_np = jnp.split(output_np, 2, axis=-1)
    squared_error_n = jnp.mean((predicted_np - noise_np) ** 2, axis=-1)
    # The gradient of the bound reaches the variance only.
    frozen = jnp.concatenate([jax.lax.stop_gradient(predicted_np), share_np], axis=-1)
    model = posterior(schedule, frozen, noised_np, t_n)
    true_mean_np = _posterior_mean(schedule, start_np, noised_np, t_n)
    true_log_variance = _lookup(schedule.posterior_log_variance, t_n)
    divergence_np = _gaussian_divergence(
        true_mean_np, true_log_variance, model.mean, model.log_variance
    )
    likelihood_np = _discretized_log_likelihood(start_np, model.mean, 0.5 * model.log_variance)
    bound_np = jnp.where(t_n[:, None] == 0, -likelihood_np, divergence_np)
    return DiffusionTerms(squared_error_n, jnp.mean(bound_np, axis=-1) / np.log(2.0))


def _gaussian_divergence(mean1, log_variance1, mean2, log_variance2):
    """Returns the elementwise KL divergence of two diagonal Gaussians, in nats."""
    ratio = jnp.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2) ** 2 * jnp.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1.0)


def _normal_cdf(x):
    """Returns the tanh approximation of the standard normal's cumulative distribution function."""
    return 0.5 * (1.0 + jnp.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _discretized_log_likelihood(x, mean, log_scale):
    """Returns the log probability of the bin of width 2/255 around x; outer bins are unbounded."""
    centered, inverse = x - mean, jnp.exp(-log_scale)
    upper = _normal_cdf(inverse * (centered + 1 / 255))
    lower = _normal_cdf(inverse * (centered - 1 / 255))
    inside = jnp.where(x > 0.999, 1 - lower, upper - lower)
    return jnp.log(jnp.clip(jnp.where(x < -0.999, upper, inside), 1e-12))


def sample(
    denoise: DenoiseFn,
    schedule: Schedule,
    noises_snp: jax.Array,
    start_np: jax.Array,
    temperature: float,
) -> jax.Array:
    """Samples patches by ancestral sampling with all steps of the schedule.

    Args:
      denoise: function (noised_np, t_n) -> [n, 2p] that applies the conditional model.
      schedule: tables, usually of a respaced schedule.
      noises_snp: standard normal noise of each step, in order of use; the last step adds no noise.
      start_np: standard normal noise from which sampling starts.
      temperature: factor that multiplies the noise of each step.

    Returns:
      [s n p]: the patches after each step; the last entry is the sample.
    """
    n = start_np.shape[0]

    def step(noised_np, inputs):
        i, noise_np = inputs
        t_n = jnp.full((n,), i)
        timestep_n = jnp.full((n,), jnp.asarray(schedule.timesteps, jnp.int32)[i])
        gaussian = posterior(schedule, denoise(noised_np, timestep_n), noised_np, t_n)
        added_np = jnp.exp(0.5 * gaussian.log_variance) * noise_np * temperature
        noised_np = gaussian.mean + jnp.where(i > 0, added_np, 0.0)
        return noised_np, noised_np

    steps = jnp.arange(len(schedule.betas) - 1, -1, -1)
    return jax.lax.scan(step, start_np, (steps, noises_snp))[1]
