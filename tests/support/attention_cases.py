"""Random inputs of attention, and the results of a float64 softmax to compare with.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax


def draw(n, heads=2, width=8, batch=2, seed=0, keys=None):
    """Draws queries, keys, values and the gradient of the output; `keys` is n by default."""
    rng = np.random.default_rng(seed)
    lengths = (n, keys or n, keys or n, n)
    return [rng.standard_normal((batch, size, heads, width), np.float32) for size in lengths]


def reference(q, k, v, out, window):
    """Computes attention in float64, and the gradients of its product with `out`."""
    q, k, v, out = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (q, k, v, out))
    scale = q.shape[-1] ** -0.5
    logits = scale * q @ k.swapaxes(2, 3)
    if window is not None:
        distance = np.arange(q.shape[2])[:, None] - np.arange(k.shape[2])
        logits[:, :, np.abs(distance) > window] = -np.inf
    weights = softmax(logits, axis=-1)
    d_weights = out @ v.swapaxes(2, 3)
    inner = np.sum(weights * d_weights, axis=-1, keepdims=True)
    d_logits = scale * weights * (d_weights - inner)
    results = (
        weights @ v,
        d_logits @ k,
        d_logits.swapaxes(2, 3) @ q,
        weights.swapaxes(2, 3) @ out,
    )
    return [x.transpose(0, 2, 1, 3) for x in results]


def check(run, n, window, tolerance=1e-5, **sizes):
    *qkv, out = draw(n, **sizes)

    def product(q, k, v):
        y = run(q, k, v, window)
        return jnp.vdot(y, out), y

    graded = jax.jit(jax.value_and_grad(product, (0, 1, 2), has_aux=True))
    (_, y), gradients = graded(*qkv)
    for actual, expected in zip((y, *gradients), reference(*qkv, out, window), strict=True):
        largest = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)
