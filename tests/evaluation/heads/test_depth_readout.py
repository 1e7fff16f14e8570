import jax
import numpy as np
import pytest
from head_formulas import attention, gelu_tanh, layer_norm, linear, random_params

from invnext_jax.evaluation.heads.depth_readout import (
    DepthReadout,
    LinearDepthReadout,
    output_patch,
)


def readout(x, p, heads):
    """The readout of 4DS with learned queries, in float64: [b t n d] -> [b q o]."""
    x = layer_norm(x, p["norm"], 1e-6) + p["temporal_position"][None, :, None]
    x = x.reshape(len(x), -1, x.shape[-1])
    query = np.broadcast_to(p["query"], (len(x), *p["query"].shape))
    z = attention(query, linear(x, p["k"]), linear(x, p["v"]), heads)
    z = query + linear(z, p["out"])
    h = gelu_tanh(linear(layer_norm(z, p["norm_mlp"], 1e-6), p["mlp"]["fc1"]))
    return linear(z + linear(h, p["mlp"]["fc2"]), p["readout"])


def to_pixels(out, video, patch):
    """Copies the outputs of each query to its patch, in raster order."""
    depth = np.full((len(out), *video), np.nan)
    queries = iter(range(out.shape[1]))
    for t in range(0, video[0], patch[0]):
        for y in range(0, video[1], patch[1]):
            for x in range(0, video[2], patch[2]):
                part = out[:, next(queries)].reshape(-1, *patch)
                depth[:, t : t + patch[0], y : y + patch[1], x : x + patch[2]] = part
    return depth


@pytest.mark.parametrize("frames", [1, 2])
def test_forward_equals_the_formula(frames):
    video = (4, 8, 12)  # grid 4 x 2 x 3 of patch 4
    x = np.random.default_rng(0).normal(0, 2, (2, 4, 6, 16)).astype(np.float32)
    patch = output_patch(4, frames)
    module = DepthReadout(video, patch, width=24, heads=4)
    params = random_params(module, x)
    expected = to_pixels(readout(x, params["readout"], 4), video, patch)
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2])
def test_linear_readout_equals_the_formula(frames):
    patch = (frames, 4, 4)
    x = np.random.default_rng(0).normal(0, 2, (2, 3, 6, 16)).astype(np.float32)  # grid 2 x 3
    module = LinearDepthReadout((2, 3), patch)
    params = random_params(module, x)
    out = linear(layer_norm(x, params["norm"], 1e-6), params["readout"])
    expected = to_pixels(out.reshape(2, 18, -1), (3 * frames, 8, 12), patch)
    got = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_output_patches_and_queries_of_the_paper():
    assert output_patch(14) == (1, 14, 14)
    assert output_patch(14, 2) == (2, 7, 7)
    assert output_patch(16, 2) == (2, 8, 8)
    for frames, queries in ((1, 16 * 256), (2, 8 * 32 * 32)):
        module = DepthReadout((16, 224, 224), output_patch(14, frames), width=1536)
        x = jax.ShapeDtypeStruct((1, 16, 256, 768), np.float32)
        out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        assert out.shape == (1, 16, 224, 224)
        assert variables["params"]["readout"]["query"].shape == (queries, 1536)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="even patch size, not 7"):
        output_patch(7, 2)
    with pytest.raises(ValueError, match="must divide"):
        DepthReadout((4, 8, 8), (1, 3, 3)).init(jax.random.key(0), np.zeros((1, 4, 4, 8)))
