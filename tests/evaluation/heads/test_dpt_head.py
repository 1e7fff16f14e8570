import jax
import numpy as np
import parity
import pytest
from head_formulas import random_params

from invnext_jax.evaluation.heads import dpt_head

CHANNELS, WIDTH, TOKENS = (8, 12, 16, 16), 16, 24


def conv_params(conv, *, flip=False):
    """Converts a torch convolution to the layout of Flax: height, width, input, output."""
    kernel = parity.numpy_of(conv.weight)
    if flip:  # transposed: the input comes first, and flax flips the kernel
        kernel = kernel.transpose(2, 3, 0, 1)[::-1, ::-1]
    else:
        kernel = kernel.transpose(2, 3, 1, 0)
    bias = {} if conv.bias is None else {"bias": parity.numpy_of(conv.bias)}
    return {"kernel": kernel, **bias}


def dpt_params(neck, head):
    """The weights of transformers' neck and depth head in the layout of `DptHead`."""
    params = {"conv1": conv_params(head[0]), "conv2": conv_params(head[2])}
    params["depth"] = conv_params(head[4])
    for i, layer in enumerate(neck.reassemble_stage.layers):
        params[f"reassemble{i}"] = {"project": conv_params(layer.projection)}
        if i != 2:
            params[f"reassemble{i}"]["resize"] = conv_params(layer.resize, flip=i < 2)
        params[f"neck{i}"] = conv_params(neck.convs[i])
        fusion = neck.fusion_stage.layers[3 - i]  # from coarse to fine
        units = {"unit1": fusion.residual_layer1, "unit2": fusion.residual_layer2}
        params[f"fusion{i}"] = {"project": conv_params(fusion.projection)} | {
            name: {
                "conv1": conv_params(unit.convolution1),
                "conv2": conv_params(unit.convolution2),
            }
            for name, unit in units.items()
            if i < 3 or name == "unit2"  # the coarsest layer has no finer map
        }
    return params


@pytest.fixture(scope="module")
def dpt():
    torch, transformers = parity.import_transformers()
    from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

    config = transformers.DPTConfig(
        hidden_size=TOKENS,
        readout_type="ignore",
        neck_hidden_sizes=CHANNELS,
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=WIDTH,
    )
    model = torch.nn.ModuleDict({"neck": DPTNeck(config), "head": DPTDepthEstimationHead(config)})
    return torch, parity.randomise(torch, model)


def layers(grid, b=1, t=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(b, t, grid[0] * grid[1], TOKENS)).astype(np.float32) for _ in "1234"]


def torch_depth(torch, model, x, grid, patch):
    """Computes depth with the modules of transformers, resized to the size of the frames."""
    head = model["head"].head
    with torch.no_grad():
        states = [torch.from_numpy(y.reshape(-1, *y.shape[2:])) for y in x]
        states = [torch.nn.functional.pad(y, (0, 0, 1, 0)) for y in states]  # a class token
        fused = model["neck"](states, *grid)[-1]
        if patch == 16:
            return parity.numpy_of(model["head"]([fused]))
        size = (patch * grid[0], patch * grid[1])
        y = torch.nn.functional.interpolate(
            head[0](fused), size, mode="bilinear", align_corners=True
        )
        return parity.numpy_of(head[2:](y)[:, 0])


@pytest.mark.parametrize(("grid", "patch"), [((4, 6), 16), ((4, 6), 14), ((2, 2), 14)])
def test_head_without_time_equals_transformers(dpt, grid, patch):
    torch, model = dpt
    x = layers(grid)
    expected = torch_depth(torch, model, x, grid, patch)
    module = dpt_head.DptHead(grid, patch, CHANNELS, WIDTH, temporal=False)
    params = dpt_params(model["neck"], model["head"].head)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    got = np.asarray(jax.jit(module.apply)({"params": params}, x))[0]
    assert got.shape == (2, patch * grid[0], patch * grid[1])
    assert 0.1 < np.mean(expected > 0) < 1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.parametrize(("old", "new"), [(4, 9), (9, 4), (1, 3), (3, 1), (5, 5), (16, 224)])
def test_resize_equals_torch(old, new):
    torch, _ = parity.import_transformers()
    x = np.random.default_rng(0).normal(size=(2, old, old + 1, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), (new, 7), mode="bilinear", align_corners=True
    )
    got = dpt_head.resize_corners(x, (new, 7)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


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
