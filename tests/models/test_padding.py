"""Tokens that are padded once for all layers: outputs and gradients are those without padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, stage1
from invnext_jax.models import attention, encoder, tubelet_encoder
from invnext_jax.training import mesh as mesh_lib


@pytest.fixture
def any_padding(monkeypatch):
    """Allows the padding of short sequences."""
    monkeypatch.setattr(attention, "MAX_PADDING", 1e3)


def grade(model, params, inputs, **options):
    """Returns all outputs, and the gradients of a weighted sum of them."""

    def product(params, first, *rest):
        outputs = model.apply({"params": params}, first, *rest, **options)
        rng = np.random.default_rng(1)
        weighted = [jnp.vdot(y, rng.standard_normal(y.shape)) for y in jax.tree.leaves(outputs)]
        return sum(weighted), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(product, (0,), has_aux=True))(
        params, *inputs
    )
    return outputs, gradients


def check(model, inputs, tokens, **options):
    """Compares a model with padded tokens to the same model without splash attention."""
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *inputs)["params"])
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    with attention.kernel("splash"), attention.record_choices() as choices:
        actual = grade(model, params, inputs, **options)
    assert {(choice.kernel, choice.queries, choice.keys) for choice in choices} == {
        ("splash", 128, 128)
    }
    with attention.kernel("naive"), attention.record_choices() as choices:
        expected = grade(model, params, inputs, **options)
    assert {(choice.queries, choice.keys) for choice in choices} == {(tokens, tokens)}
    compare(actual, expected)


def compare(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        largest = max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-5 * largest)


def make_encoder(**options):
    config = stage1.get_config("tiny")
    config.remat = options.pop("remat", "none")
    config.encoder.update(depth=2, frames=4, **options)
    return encoder.from_config(config, taps=(0, 1, 2))


def draw_clips(frames=4, size=32):
    return np.random.default_rng(0).standard_normal((2, frames, size, size, 3), np.float32)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_encoder_with_visible_tokens_taps_and_drop_path(any_padding, remat):
    rng = np.random.default_rng(2)
    keep_bk = np.sort([rng.permutation(64)[:37] for _ in range(2)], axis=1).astype(np.int32)
    model = make_encoder(remat=remat, drop_path=0.5)
    check(model, (draw_clips(), keep_bk), 4 + 37, rngs={"droppath": jax.random.key(3)})


@pytest.mark.parametrize("exchange", ["gather", "all_to_all"])
def test_encoder_with_tokens_split_over_devices(any_padding, exchange):
    axes = common.defaults().mesh
    axes.update(data=2, fsdp=1, tensor=1, sequence=2)
    model, clips = make_encoder(), draw_clips()
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), clips)["params"])
    with attention.kernel("naive"):
        expected = grade(model, params, (clips,))
    mesh = mesh_lib.make_mesh(axes, jax.devices()[:4])
    with mesh_lib.mesh_rules(mesh, exchange), attention.kernel("splash"):
        with attention.record_choices() as choices:
            actual = grade(model, params, (clips,))
    assert {choice.keys for choice in choices} == {256}  # a tile on each device
    compare(actual, expected)


def test_rotary_positions_of_a_grid(any_padding):
    sizes = {"width": 24, "depth": 2, "heads": 2, "mlp_width": 16, "patch": 4, "tubelet": 2}
    sizes |= {"train_size": 8, "frames": 4, "eps": 1e-6, "kind": "vjepa2"}
    check(tubelet_encoder.from_sizes(sizes, taps=(1,)), (draw_clips(size=12),), 18)


def test_long_padding_is_left_to_each_attention_layer():
    def length(tokens):
        return attention.padded_length(jnp.zeros((1, tokens, 8)), jnp.float32)

    with attention.kernel("splash"):
        assert [length(n) for n in (64, 196, 256, 1540, 8196)] == [64, 196, 256, 1664, 8320]
    with attention.kernel("blockwise"):
        assert length(1540) == 1540
