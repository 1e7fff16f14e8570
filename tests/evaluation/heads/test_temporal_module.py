import jax
import numpy as np
from head_formulas import attention, gelu, layer_norm, linear, random_params

from invnext_jax.evaluation.heads.temporal_module import TemporalModule
from invnext_jax.models.positions import interleaved_sincos_table

HEADS, GROUPS, SHAPE = 2, 4, (2, 3, 2, 4, 8)  # b t h w c


def temporal_module(x, p):
    """Computes the module in float64, one position at a time."""
    b, t, h, w, c = x.shape
    groups = x.astype(np.float64).reshape(b, t, h * w, GROUPS, c // GROUPS)
    mean = groups.mean((2, 4), keepdims=True)
    y = ((groups - mean) / np.sqrt(groups.var((2, 4), keepdims=True) + 1e-6)).reshape(x.shape)
    y = linear(y * p["norm"]["scale"] + p["norm"]["bias"], p["proj_in"])
    time = np.zeros((t, c))
    for position in range(t):
        for i in range(0, c, 2):
            angle = position / 10000 ** (i / c)
            time[position, i : i + 2] = np.sin(angle), np.cos(angle)
    out = np.zeros(x.shape)
    for row in range(h):
        for column in range(w):
            z = y[:, :, row, column]
            for i in range(2):
                a = p[f"attention{i}"]
                n = layer_norm(z, p[f"attention_norm{i}"], 1e-5) + time
                q, k, v = (n @ a[name]["kernel"] for name in "qkv")
                z = z + linear(attention(q, k, v, HEADS), a["out"])
            hidden = linear(layer_norm(z, p["mlp_norm"], 1e-5), p["mlp_in"])
            z = z + linear(hidden[..., : 4 * c] * gelu(hidden[..., 4 * c :]), p["mlp_out"])
            out[:, :, row, column] = linear(z, p["proj_out"])
    return x + out


def test_module_equals_the_formula():
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    module = TemporalModule(HEADS, GROUPS)
    params = random_params(module, x)
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, temporal_module(x, params), rtol=1e-4, atol=1e-5)


def test_untrained_module_returns_its_input():
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    got, _ = jax.jit(TemporalModule(HEADS, GROUPS).init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(got, x)


def test_time_embedding_has_no_largest_length():
    table = interleaved_sincos_table(8, 100)
    np.testing.assert_array_equal(table[:32], interleaved_sincos_table(8, 32))
    assert len(np.unique(table, axis=0)) == 100
