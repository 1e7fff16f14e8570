import jax
import numpy as np
import pytest
from head_formulas import attention, gelu_tanh, layer_norm, linear, random_params

from invnext_jax.evaluation.heads import tracking_readout as tr
from invnext_jax.models.positions import sincos_table

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(0, 2, (2, 4, 6, 16)).astype(np.float32)
BOXES = RNG.uniform(0, 1, (2, 3, 4)).astype(np.float32)


def tracks(x, query, p, module):
    """The tracking readout of 4DS in float64: [b t n d], [b k c] -> [b f k o]."""
    octaves = [query.astype(np.float64) * 2**i for i in range(16)]
    angle = np.pi * np.concatenate(octaves, axis=-1)
    z = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    z = linear(gelu_tanh(linear(z, p["fc1"])), p["fc2"])
    b, k, _ = z.shape
    if module.tokens > 1:
        z = (z[:, :, None] + p["query_position"]).reshape(b, k * module.tokens, -1)
    p = p["readout"]
    x = layer_norm(x, p["norm"], 1e-6) + p["temporal_position"][None, :, None]
    x = x.reshape(b, -1, x.shape[-1])
    if module.grid:
        table = sincos_table(module.width, (4, *module.grid), 0)
        x = np.concatenate([x, np.repeat(table[None], b, axis=0)], axis=-1)
    z = linear(z, p["q"])
    y = attention(z, linear(x, p["k"]), linear(x, p["v"]), module.heads)
    z = z + linear(y, p["out"])
    h = gelu_tanh(linear(layer_norm(z, p["norm_mlp"], 1e-6), p["mlp"]["fc1"]))
    out = linear(z + linear(h, p["mlp"]["fc2"]), p["readout"])
    return out.reshape(b, k, module.frames, -1).swapaxes(1, 2)


@pytest.mark.parametrize(
    "module",
    [
        tr.TrackingReadout(frames=3, width=24, query_width=20),
        tr.TrackingReadout(frames=4, outputs=3, width=24, query_width=20, tokens=2),
        tr.TrackingReadout(frames=3, width=32, query_width=20, tokens=3, grid=(2, 3)),
    ],
)
def test_forward_equals_the_formula(module):
    query = BOXES if module.outputs == 4 else BOXES[..., :3]
    params = random_params(module, TOKENS, query)
    got = jax.jit(module.apply)({"params": params}, TOKENS, query)
    expected = tracks(TOKENS, query, params, module)
    assert got.shape == (2, module.frames, 3, module.outputs)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_fourier_features_are_exact_in_the_highest_octave():
    x = RNG.uniform(0, 1, (1, 50, 2)).astype(np.float32)
    got = np.asarray(tr.fourier_features(x))
    angle = np.pi * 2**15 * x.astype(np.float64)
    assert got.shape == (1, 50, 64)
    np.testing.assert_allclose(got[..., 30:32], np.sin(angle), atol=1e-6)
    np.testing.assert_allclose(got[..., 62:], np.cos(angle), atol=1e-6)


def test_padding_does_not_change_the_tracks():
    module = tr.TrackingReadout(frames=3, width=24, query_width=20)
    params = random_params(module, TOKENS, BOXES)
    query, mask = tr.pad_queries([BOXES[0], BOXES[1, :1]], 5)
    np.testing.assert_array_equal(mask.sum(1), [3, 1])
    padded = np.asarray(module.apply({"params": params}, TOKENS, query))
    for i in range(2):
        count = mask[i].sum()
        got = module.apply({"params": params}, TOKENS[i : i + 1], BOXES[i : i + 1, :count])
        np.testing.assert_allclose(padded[i : i + 1, :, :count], got, rtol=1e-5, atol=1e-5)


def test_too_many_queries_are_refused():
    with pytest.raises(ValueError, match="3 queries, more than count=2"):
        tr.pad_queries([BOXES[0]], 2)


def test_tokens_that_do_not_divide_the_frames_are_refused():
    with pytest.raises(ValueError, match="tokens=2 must divide frames=3"):
        tr.TrackingReadout(frames=3, tokens=2).init(jax.random.key(0), TOKENS, BOXES)
