"""Decoding in chunks equals decoding at once, also if the number of patches does not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax.objectives import reconstruction

CLIPS, MASKED, PIXELS, WIDTH = 2, 7, 6, 5


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((CLIPS * MASKED, PIXELS), np.float32)
    latents = rng.standard_normal((CLIPS, MASKED, WIDTH), np.float32)
    return start, latents, rng.standard_normal((PIXELS + WIDTH + 1, 2 * PIXELS), np.float32) / 4


def sample_noise(repeats):
    keys = jax.random.split(jax.random.key(1))
    return reconstruction.sample_noise(*keys, repeats * CLIPS * MASKED, PIXELS)


@pytest.mark.parametrize("chunks", [2, 3, 100])
@pytest.mark.parametrize("repeats", [0, 1, 2])
def test_chunks_change_neither_loss_nor_gradient(arrays, chunks, repeats):
    start, latents, weights = arrays
    noise = sample_noise(repeats) if repeats else None

    def decode(weights, noised, t, latents):
        if t is None:
            return latents @ weights[:WIDTH, :PIXELS]
        inputs = [noised, latents, jnp.cos(t[:, None] / 100.0)]
        return jnp.tanh(jnp.concatenate(inputs, axis=1) @ weights)

    def loss(weights, latents, chunks):
        def decode_fn(*inputs):
            return decode(weights, *inputs)

        return reconstruction.loss_terms(decode_fn, start, latents, noise, chunks)["pixels"]

    at_once, in_chunks = (
        jax.jit(jax.value_and_grad(lambda w, z, c=c: loss(w, z, c), (0, 1)))(weights, latents)
        for c in (1, chunks)
    )
    np.testing.assert_allclose(in_chunks[0], at_once[0], rtol=1e-6)
    for actual, expected in zip(in_chunks[1], at_once[1], strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
