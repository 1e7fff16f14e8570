"""Images that stages make of clips: the masks, and no leak of masked pixels."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.stages import image_teacher, pixel_sampling
from invnext_jax.stages.registry import STAGES

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]


def get_config(**mask):
    config = stage1_config.get_config("tiny")
    config.encoder.update(width=16, depth=2, heads=2, mlp_width=32, pool_width=16, frames=2)
    config.predictor.update(width=16, depth=1, heads=2, mlp_width=16)
    config.decoder.update(depth=1, width=32)
    config.data.frames = 2
    config.mask.update(mask)
    return config


@pytest.fixture(scope="module")
def trained():
    """Parameters of the model, with a decoder that is not zero, and of the teacher."""
    config = get_config()
    model = stage1.make_model(config)
    params = jax.jit(lambda key: stage1.init_params(config, model, key))(jax.random.key(0))
    params = nn.meta.unbox(params)
    keys = iter(jax.random.split(jax.random.key(1), 200))
    params["decoder"] = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params["decoder"]
    )
    return params, stage1.init_frozen(config, None)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)


def split_pixels(seen_btyx):
    return np.repeat(np.repeat(seen_btyx, 8, axis=2), 8, axis=3)


def test_visible_patches_are_copied_and_hidden_ones_do_not_leak(trained, clips):
    config = get_config(kind="random")  # this mask does not depend on the clip
    made = pixel_sampling.reconstruct(stage1, config, *trained, clips)
    seen = split_pixels(made.visible_btyx)
    assert made.visible_btyx.sum() == 2 * 2 * 4
    np.testing.assert_array_equal(made.own_bthwc[seen], clips[seen])
    changed = np.where(seen[..., None], clips, 255 - clips)
    again = pixel_sampling.reconstruct(stage1, config, *trained, changed)
    np.testing.assert_array_equal(again.own_bthwc, made.own_bthwc)
    assert np.abs(made.own_bthwc[~seen].astype(int) - clips[~seen]).mean() > 10


def test_sample_depends_on_the_latents(trained, clips):
    made = pixel_sampling.reconstruct(stage1, get_config(), *trained, clips)
    assert (made.own_bthwc != made.other_bthwc).any()
    seen = split_pixels(made.visible_btyx)
    np.testing.assert_array_equal(made.other_bthwc[seen], clips[seen])


def test_mean_of_samples(trained, clips, monkeypatch):
    made = pixel_sampling.reconstruct(stage1, get_config(), *trained, clips)
    seen = split_pixels(made.visible_btyx)
    np.testing.assert_array_equal(made.mean_bthwc[seen], clips[seen])
    hidden = made.own_bthwc[~seen].astype(float), made.mean_bthwc[~seen].astype(float)
    assert hidden[1].std() < 0.8 * hidden[0].std()
    monkeypatch.setattr(pixel_sampling, "DRAWS", 1)
    alone = pixel_sampling.reconstruct(stage1, get_config(), *trained, clips)
    np.testing.assert_array_equal(alone.mean_bthwc, alone.own_bthwc)
    np.testing.assert_array_equal(alone.own_bthwc, made.own_bthwc)
    monkeypatch.setattr(pixel_sampling, "MAX_PATCHES", 2)
    limited = pixel_sampling.reconstruct(stage1, get_config(), *trained, clips)
    assert limited.mean_bthwc is None
    np.testing.assert_array_equal(limited.own_bthwc, made.own_bthwc)


def test_stage2_masks_are_tubes_of_both_kinds():
    config = stage2_config.get_config("tiny")
    found = stage2.visualize(config, None, np.zeros((3, 8, 32, 32, 3), np.uint8))
    assert len(found) == 2
    for seen in (strip.visible_btyx for strip in found):
        np.testing.assert_array_equal(seen, np.repeat(seen[:, :1], 8, axis=1))
        assert 0 < seen[0, 0].sum() < 16


def test_a_semantic_mask_of_stage2_is_the_image_teachers(trained, clips, monkeypatch):
    config = stage2_config.get_config("tiny")
    config.mask.kind = "semantic"
    monkeypatch.setattr(image_teacher, "read_teacher", lambda _: trained[1]["teacher"])
    (strip,) = stage2.visualize(config, None, clips)
    seen = strip.visible_btyx
    assert (seen.sum(axis=(2, 3)) == 4).all()
    assert (seen[:, 0] != seen[:, 1]).any()


def test_a_run_without_pixels_has_a_mask_and_no_reconstruction(clips):
    config = get_config(kind="tube")
    config.loss.update(pixels=0.0, align_tokens=0.0)
    model = stage1.make_model(config)
    init = jax.jit(lambda key: stage1.init_params(config, model, key))
    params = nn.meta.unbox(init(jax.random.key(0)))
    made = pixel_sampling.reconstruct(
        stage1, config, params, stage1.init_frozen(config, None), clips
    )
    assert made.visible_btyx.sum() == 2 * 2 * 4
    assert made.own_bthwc is None and made.other_bthwc is None and made.mean_bthwc is None


def test_positions_of_visible_patches():
    seen = pixel_sampling.visible_grid(np.array([[0, 5]]), (2, 2, 2))
    np.testing.assert_array_equal(seen[0], [[[1, 0], [0, 0]], [[0, 1], [0, 0]]])
