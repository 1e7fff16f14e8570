"""NumPy formulas in float64, for the tests of the evaluation heads, and random parameters."""

import flax.linen as nn
import jax
import numpy as np
from scipy.special import erf


def random_params(module, *inputs, seed=0):
    """Returns random parameters of a module, including biases, scales and queries."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kernel = path[-1].key == "kernel"
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if kernel else 0.5
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes)["params"])


def layer_norm(x, p, eps):
    x = x.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * p["scale"] + p["bias"]


def linear(x, p):
    return np.asarray(x) @ p["kernel"].astype(np.float64) + p["bias"]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(q, k, v, heads):
    """Computes multi-head attention from queries [b q d] to keys [b n d]."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    logits = np.einsum("bqhe,bnhe->bhqn", q, k) / np.sqrt(q.shape[-1])
    return np.einsum("bhqn,bnhe->bqhe", softmax(logits), v).reshape(*q.shape[:2], -1)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
