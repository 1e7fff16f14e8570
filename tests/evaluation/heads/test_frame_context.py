"""The context of a predictor holds single frames, and predictors see what they are meant to see."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import stage1
from invnext_jax.evaluation.heads import frame_context
from invnext_jax.models import encoder as encoder_lib
from invnext_jax.models.patches import normalize
from invnext_jax.objectives import masks

GRID = (3, 4, 4)


@pytest.fixture(scope="module")
def config():
    config = stage1.get_config("tiny")
    config.encoder.update(width=32, depth=2, heads=2, mlp_width=32, size=16, frames=3, patch=4)
    config.predictor.update(width=32, depth=2, heads=2, mlp_width=32)
    return config


@pytest.fixture(scope="module")
def encoder(config):
    module = encoder_lib.from_config(config)
    params = jax.jit(module.init)(jax.random.key(0), normalize(clips()))["params"]
    return module, nn.meta.unbox(params)


def clips():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)


def other_first_frame():
    video = clips()
    video[:, 0] = 255 - video[:, 0]
    return video


def encode(encoder, video, target="latents"):
    settings = stage1.get_config("tiny").mask
    settings.kind = "multi_block"
    mask = masks.sample_masks(jax.random.key(1), 2, GRID, settings)[0]
    module, params = encoder
    run = jax.jit(
        lambda params, x: frame_context.encode_context(module, params, normalize(x), mask, target)
    )
    return run(params, video), mask


def test_tokens_of_a_frame_do_not_depend_on_other_frames(encoder):
    context, other = (encode(encoder, x)[0] for x in (clips(), other_first_frame()))
    changed = np.abs(context.tokens_btkd - other.tokens_btkd).max(axis=(0, 2, 3))
    assert changed[0] > 1e-3 and (changed[1:] == 0).all()
    target = np.abs(context.target_btmp - other.target_btmp).max(axis=(0, 2, 3))
    assert (target > 1e-4).all()  # the target sees the whole clip


def test_positions_and_targets_belong_to_the_patches_of_each_frame(encoder):
    context, (keep_bk, masked_bm) = encode(encoder, clips(), "pixels")
    first = np.arange(3)[None, :, None] * 16
    np.testing.assert_array_equal((context.keep_btk + first).reshape(2, -1), keep_bk)
    np.testing.assert_array_equal((context.masked_btm + first).reshape(2, -1), masked_bm)
    place = int(context.masked_btm[1, 2, 0])
    row, column = 4 * (place // 4), 4 * (place % 4)
    patch = normalize(clips())[1, 2, row : row + 4, column : column + 4]
    np.testing.assert_allclose(context.target_btmp[1, 2, 0], patch.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("all_frames", [False, True])
def test_only_the_predictor_of_all_frames_depends_on_other_frames(encoder, config, all_frames):
    module = frame_context.make_predictor(config, 32, all_frames=all_frames)
    contexts = [encode(encoder, x)[0] for x in (clips(), other_first_frame())]
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), contexts[0])["params"])
    predicted = [jax.jit(module.apply)({"params": params}, context) for context in contexts]
    assert predicted[0].shape == contexts[0].target_btmp.shape
    changed = np.abs(predicted[0] - predicted[1]).max(axis=(0, 2, 3))
    assert changed[0] > 1e-4
    assert (changed[1:] > 1e-6).all() == all_frames
    if not all_frames:
        assert (changed[1:] == 0).all()


def test_losses_of_each_clip():
    rng = np.random.default_rng(1)
    predicted, target = rng.standard_normal((2, 2, 3, 5, 7)).astype(np.float32)
    unit = target / np.linalg.norm(target, axis=-1, keepdims=True)
    context = frame_context.Context(None, None, None, unit)
    cosine = (predicted * unit).sum(-1) / np.linalg.norm(predicted, axis=-1)
    found = frame_context.prediction_losses(predicted, context, "latents")
    np.testing.assert_allclose(found, (2 - 2 * cosine).mean(axis=(1, 2)), rtol=1e-5)
    found = frame_context.prediction_losses(predicted, context, "pixels")
    np.testing.assert_allclose(found, ((predicted - unit) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
