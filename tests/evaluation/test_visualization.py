"""Pictures of clips: the mask that was drawn, no leak of hidden pixels, colours of features."""

import base64
import io

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.evaluation import visualization
from invnext_jax.stages import stage1


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
    """Parameters whose decoder is not the zero map that it starts as, and the teacher's."""
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
    config = get_config(kind="random")  # this mask does not look at the clip
    made = visualization.reconstruct(config, *trained, clips)
    seen = split_pixels(made.seen_btyx)
    assert made.seen_btyx.sum() == 2 * 2 * 4
    np.testing.assert_array_equal(made.own_bthwc[seen], clips[seen])
    changed = np.where(seen[..., None], clips, 255 - clips)
    again = visualization.reconstruct(config, *trained, changed)
    np.testing.assert_array_equal(again.own_bthwc, made.own_bthwc)
    assert np.abs(made.own_bthwc[~seen].astype(int) - clips[~seen]).mean() > 10


def test_other_latents_change_the_sample_of_a_decoder_that_listens(trained, clips):
    made = visualization.reconstruct(get_config(), *trained, clips)
    assert (made.own_bthwc != made.other_bthwc).any()
    seen = split_pixels(made.seen_btyx)
    np.testing.assert_array_equal(made.other_bthwc[seen], clips[seen])


def test_stage2_masks_are_tubes_of_both_kinds():
    config = stage2_config.get_config("tiny")
    found = visualization.stage2_masks(config, np.zeros((3, 8, 32, 32, 3), np.uint8))
    assert len(found) == 2
    for seen in found:
        np.testing.assert_array_equal(seen, np.repeat(seen[:, :1], 8, axis=1))
        assert 0 < seen[0, 0].sum() < 16


def test_a_semantic_mask_of_stage2_is_the_image_teachers(trained, clips):
    config = stage2_config.get_config("tiny")
    config.mask.kind = "semantic"
    _, frozen = trained
    (seen,) = visualization.stage2_masks(config, clips, frozen["teacher"])
    assert (seen.sum(axis=(2, 3)) == 4).all()
    assert (seen[:, 0] != seen[:, 1]).any()


def test_a_run_without_pixels_has_a_mask_and_no_reconstruction(clips):
    config = get_config(kind="tube")
    config.loss.update(pixels=0.0, align_tokens=0.0)
    model = stage1.make_model(config)
    init = jax.jit(lambda key: stage1.init_params(config, model, key))
    params = nn.meta.unbox(init(jax.random.key(0)))
    made = visualization.reconstruct(config, params, stage1.init_frozen(config, None), clips)
    assert made.seen_btyx.sum() == 2 * 2 * 4
    assert made.own_bthwc is None and made.other_bthwc is None


def test_places_of_visible_patches():
    seen = visualization.visible_places(np.array([[0, 5]]), (2, 2, 2))
    np.testing.assert_array_equal(seen[0], [[[1, 0], [0, 0]], [[0, 1], [0, 0]]])


def test_hidden_patches_are_grey(clips):
    seen = np.zeros((2, 4, 4), bool)
    seen[:, 0, 0] = True
    shown = visualization.hide_patches(clips[0], seen)
    np.testing.assert_array_equal(shown[:, :8, :8], clips[0, :, :8, :8])
    assert (shown[:, 8:] == visualization.HIDDEN).all()


def test_outlines_frame_the_visible_patches_alone(clips):
    seen = np.zeros((2, 4, 4), bool)
    seen[0, 1, 1] = True
    shown = visualization.outline_patches(clips[0], seen)
    assert shown.shape == (2, 96, 96, 3)
    assert (shown[0, 24, 24:48] == 255).all()
    np.testing.assert_array_equal(shown[1], np.repeat(np.repeat(clips[0, 1], 3, 0), 3, 1))


def test_equal_features_have_equal_colours():
    kinds = np.random.default_rng(0).normal(size=(3, 8))
    which = np.random.default_rng(1).integers(3, size=(2, 4, 4))
    colors = visualization.color_features(
        kinds[which], 4
    )  # as large as the grid: nothing is smoothed
    for kind in range(3):
        assert len(np.unique(colors[which == kind], axis=0)) == 1
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 3


def test_constant_features_do_no_harm():
    assert visualization.color_features(np.ones((2, 4, 4, 8)), 32).shape == (2, 32, 32, 3)


def test_a_strip_is_a_png_of_at_most_eight_frames():
    uri = visualization.to_data_uri(np.zeros((20, 32, 32, 3), np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (8 * 96 + 7 * visualization.GAP, 96)
