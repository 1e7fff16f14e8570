"""Invariances of encoder and predictor; the golden cases test their values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1
from invnext_jax.models import encoder, predictor
from invnext_jax.models.layers import Block
from invnext_jax.models.patches import (
    denormalize,
    extract_patch_pixels,
    insert_patch_pixels,
    normalize,
    patchify,
)
from invnext_jax.models.scan import scan_blocks


@pytest.fixture(scope="module")
def tiny():
    config = stage1.get_config("tiny")
    config.encoder.depth = 2
    model = encoder.from_config(config)
    video = jax.random.normal(jax.random.key(0), (2, 8, 32, 32, 3))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), video)["params"])
    return config, model, params, video


def test_masked_patches_do_not_change_visible_tokens(tiny):
    _, model, params, video = tiny
    keep = jnp.tile(jnp.arange(0, 128, 4)[None], (2, 1))
    masked = jnp.tile(jnp.array([i for i in range(128) if i % 4])[None], (2, 1))
    noise = jax.random.normal(jax.random.key(2), (2 * 96, 192))
    changed = insert_patch_pixels(video, masked, noise)
    run = jax.jit(lambda v: model.apply({"params": params}, v, keep).tokens_bnd)
    np.testing.assert_array_equal(run(video), run(changed))
    assert not np.array_equal(video, changed)


def test_tokens_do_not_depend_on_the_order_of_visible_positions(tiny):
    _, model, params, video = tiny
    keep = jnp.tile(jnp.arange(0, 128, 3)[None], (2, 1))
    run = jax.jit(lambda k: model.apply({"params": params}, video, k).tokens_bnd)
    forward, backward = run(keep), run(keep[:, ::-1])
    np.testing.assert_allclose(forward[:, 4:], backward[:, 4:][:, ::-1], atol=1e-5)


def test_other_frame_counts_and_sizes_resize_the_table(tiny):
    _, model, params, _ = tiny
    video = jnp.zeros((1, 3, 16, 48, 3))
    tokens = jax.jit(model.apply)({"params": params}, video).tokens_bnd
    assert tokens.shape == (1, 4 + 3 * 2 * 6, 64) and np.isfinite(tokens).all()


@pytest.mark.parametrize("unroll", [1, 2])
def test_scan_equals_loop(unroll):
    block = Block(2, 32, 0.5, jnp.float32)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(2, 32, 0.5, jnp.float32, name="blocks")
            return scan_blocks(block, x, depth=3, taps=(0, 2, 3), unroll=unroll)

    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    params = nn.unbox(Stack().init(jax.random.key(1), x)["params"])
    final, taps = Stack().apply({"params": params}, x)
    states = [x]
    for i in range(3):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        states.append(block.apply({"params": layer}, states[-1], i, 0.0))
    np.testing.assert_allclose(final, states[3], atol=1e-5)
    np.testing.assert_allclose(taps, jnp.stack([states[k] for k in (0, 2, 3)]), atol=1e-5)


def test_drop_path_keeps_the_mean_and_needs_a_key():
    block = Block(1, 16, 1.0, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 3, 16))
    params = nn.unbox(block.init(jax.random.key(1), x, 0, 0.5)["params"])
    params["attn"] = jax.tree.map(jnp.zeros_like, params["attn"])
    without_drop = block.apply({"params": params}, x, 0, 0.5)
    many = jnp.repeat(x, 4000, axis=0)
    key = {"droppath": jax.random.key(2)}
    dropped = block.apply({"params": params}, many, 0, 0.5, rngs=key)
    np.testing.assert_allclose(
        dropped.mean(0), without_drop[0], atol=0.05 * float(abs(without_drop - x).max())
    )
    dropped_share = (np.asarray(dropped) == np.asarray(many)).all((1, 2)).mean()
    assert abs(dropped_share - 0.5) < 0.05


def test_predictor_does_not_depend_on_the_order_of_masked_positions(tiny):
    config, *_ = tiny
    config = config.copy_and_resolve_references()
    config.predictor.depth = 2
    model = predictor.from_config(config)
    keep = jnp.arange(0, 128, 4)[None]
    masked = jnp.array([i for i in range(128) if i % 4])[None]
    tokens = jax.random.normal(jax.random.key(0), (1, 36, 64))
    params = nn.unbox(model.init(jax.random.key(1), tokens, keep, masked, (8, 4, 4))["params"])
    run = jax.jit(lambda m: model.apply({"params": params}, tokens, keep, m, (8, 4, 4)))
    np.testing.assert_allclose(run(masked)[:, ::-1], run(masked[:, ::-1]), atol=1e-5)


def test_inserted_patches_equal_extracted_ones():
    video = jax.random.normal(jax.random.key(0), (2, 3, 8, 12, 3))
    positions = jnp.tile(jnp.arange(3 * 2 * 3)[None], (2, 1))
    targets = extract_patch_pixels(video, positions, 4)
    np.testing.assert_array_equal(
        insert_patch_pixels(jnp.zeros_like(video), positions, targets), video
    )
    # Order of a target: channel, row, column; of an input patch: row, column, channel.
    corner = video[0, 0, :4, :4]
    np.testing.assert_array_equal(targets[0].reshape(3, 4, 4), corner.transpose(2, 0, 1))
    np.testing.assert_array_equal(patchify(video, 4)[0, 0].reshape(4, 4, 3), corner)


def test_normalize_uses_imagenet_statistics_and_is_invertible():
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3)).astype(np.uint8)
    expected = (video / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(jnp.asarray(video)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(denormalize(normalize(jnp.asarray(video))), video)
