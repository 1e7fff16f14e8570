import jax
import numpy as np
import pytest
from head_formulas import random_params
from parity import numpy_of
from reference_models import draw, draw_weights, filled, module_shapes, unfold_names

from invnext_jax.evaluation.heads import dpt_head

CHANNELS, WIDTH, TOKENS = (8, 12, 16, 16), 16, 24


def dpt_params(weights):
    """The weights of transformers' neck and depth head in the layout of `DptHead`."""

    def conv(name, *, flip=False):
        """Converts a convolution to the layout of Flax: height, width, input, output."""
        kernel = weights[f"{name}.weight"]
        if flip:  # transposed: the input comes first, and flax flips the kernel
            kernel = kernel.transpose(2, 3, 0, 1)[::-1, ::-1]
        else:
            kernel = kernel.transpose(2, 3, 1, 0)
        bias = weights.get(f"{name}.bias")
        return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}

    names = {"conv1": 0, "conv2": 2, "depth": 4}
    params = {name: conv(f"head.head.{number}") for name, number in names.items()}
    for i in range(4):
        layer = f"neck.reassemble_stage.layers.{i}"
        params[f"reassemble{i}"] = {"project": conv(f"{layer}.projection")}
        if i != 2:
            params[f"reassemble{i}"]["resize"] = conv(f"{layer}.resize", flip=i < 2)
        params[f"neck{i}"] = conv(f"neck.convs.{i}")
        fusion = f"neck.fusion_stage.layers.{3 - i}"  # from coarse to fine
        params[f"fusion{i}"] = {"project": conv(f"{fusion}.projection")} | {
            f"unit{unit}": {
                f"conv{j}": conv(f"{fusion}.residual_layer{unit}.convolution{j}") for j in (1, 2)
            }
            for unit in (1, 2)
            if i < 3 or unit == 2  # the coarsest layer has no finer map
        }
    return params


def make_dpt(hf):
    from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

    config = hf.models.DPTConfig(
        hidden_size=TOKENS,
        readout_type="ignore",
        neck_hidden_sizes=CHANNELS,
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=WIDTH,
    )
    parts = {"neck": DPTNeck(config), "head": DPTDepthEstimationHead(config)}
    return hf.torch.nn.ModuleDict(parts)


def layers(grid, b=1, t=2):
    return [draw((b, t, grid[0] * grid[1], TOKENS), seed) for seed in range(4)]


def torch_depth(hf, weights, x, grid, patch):
    """Computes depth with the modules of transformers, resized to the size of the frames."""
    torch, model = hf.torch, filled(hf, make_dpt(hf), weights)
    head = model["head"].head
    states = [torch.from_numpy(y.reshape(-1, *y.shape[2:])) for y in x]
    states = [torch.nn.functional.pad(y, (0, 0, 1, 0)) for y in states]  # a class token
    fused = model["neck"](states, *grid)[-1]
    if patch == 16:
        return numpy_of(model["head"]([fused]))
    size = (patch * grid[0], patch * grid[1])
    return numpy_of(head[2:](interpolate(hf, head[0](fused), size))[:, 0])


def interpolate(hf, x, size):
    resize = hf.torch.nn.functional.interpolate
    return resize(x, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("grid", "patch"), [((2, 4), 16), ((4, 2), 14), ((2, 2), 14)])
def test_head_without_time_equals_transformers(reference, references, grid, patch):
    shapes = references.get("test_dpt_head/shapes", lambda hf: module_shapes(make_dpt(hf)))
    weights, x = draw_weights(unfold_names(shapes)), layers(grid)
    expected = reference(lambda hf: torch_depth(hf, weights, x, grid, patch))
    module = dpt_head.DptHead(grid, patch, CHANNELS, WIDTH, temporal=False)
    params = dpt_params(weights)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    got = np.asarray(jax.jit(module.apply)({"params": params}, x))[0]
    assert got.shape == (2, patch * grid[0], patch * grid[1])
    assert 0.1 < np.mean(expected > 0) < 1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.parametrize(("old", "new"), [(4, 9), (9, 4), (1, 3), (3, 1), (5, 5), (16, 224)])
def test_resize_equals_torch(reference, old, new):
    x = draw((1, old, old + 1, 2))
    expected = reference(
        lambda hf: numpy_of(
            interpolate(hf, hf.torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), (new, 7))
        )
    )
    got = dpt_head.resize_corners(x, (new, 7)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_temporal_modules_change_nothing_at_the_start():
    grid = (3, 2)  # an odd size: the coarsest map has ceil(3 / 2) rows
    x = layers(grid)
    both = [
        dpt_head.DptHead(grid, 14, CHANNELS, WIDTH, temporal=on, heads=2, groups=4)
        for on in (True, False)
    ]
    params = jax.jit(both[0].init)(jax.random.key(0), x)["params"]
    assert sum("time" in name for name in params) == 4
    without = {name: value for name, value in params.items() if "time" not in name}
    got, expected = (
        jax.jit(module.apply)({"params": p}, x)
        for module, p in zip(both, (params, without), strict=True)
    )
    assert got.shape == (1, 2, 42, 28)
    assert np.all(np.asarray(got) > 0)
    np.testing.assert_array_equal(got, expected)


def test_temporal_modules_join_the_frames():
    grid = (2, 2)
    x = layers(grid, t=3)
    module = dpt_head.DptHead(grid, 14, CHANNELS, WIDTH, heads=2, groups=4)
    params = random_params(module, x)
    changed = [y.copy() for y in x]
    for y in changed:
        y[:, 2] += 1
    got = [np.asarray(jax.jit(module.apply)({"params": params}, y)) for y in (x, changed)]
    assert np.abs(got[0][:, 0] - got[1][:, 0]).max() > 1e-3


def test_tapped_layers_of_base_and_large():
    assert dpt_head.tapped_layers(12) == (2, 5, 8, 11)
    assert dpt_head.tapped_layers(24) == (4, 11, 17, 23)
    assert dpt_head.tapped_layers(4) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="at least 4"):
        dpt_head.tapped_layers(3)


def test_wrong_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="the head needs 4 layers, not 3"):
        dpt_head.DptHead((2, 2)).init(jax.random.key(0), layers((2, 2))[:3])


def test_size_of_the_published_head():
    head = dpt_head.DptHead((16, 16))
    x = [jax.ShapeDtypeStruct((1, 2, 256, 1024), np.float32)] * 4
    out, variables = jax.eval_shape(head.init_with_output, jax.random.key(0), x)
    assert out.shape == (1, 2, 224, 224)
    # The released head has 80,021,697. A residual unit of its coarsest layer has no input.
    unused = 2 * (9 * 256 * 256 + 256)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == 80_021_697 - unused
