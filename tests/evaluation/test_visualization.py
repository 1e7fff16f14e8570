"""Images of clips show the masks, no hidden pixels, and the colors of features."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from invnext_jax.evaluation import visualization
from invnext_jax.stages.registry import STAGES

stage1 = STAGES["stage1"]


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)


def test_hidden_patches_are_grey(clips):
    seen = np.zeros((2, 4, 4), bool)
    seen[:, 0, 0] = True
    shown = visualization.hide_patches(clips[0], seen)
    np.testing.assert_array_equal(shown[:, :8, :8], clips[0, :, :8, :8])
    assert (shown[:, 8:] == visualization.HIDDEN).all()


def test_only_visible_patches_are_outlined(clips):
    seen = np.zeros((2, 4, 4), bool)
    seen[0, 1, 1] = True
    shown = visualization.outline_patches(clips[0], seen)
    assert shown.shape == (2, 96, 96, 3)
    assert (shown[0, 24, 24:48] == 255).all()
    np.testing.assert_array_equal(shown[1], np.repeat(np.repeat(clips[0, 1], 3, 0), 3, 1))


def test_equal_features_have_equal_colors():
    kinds = np.random.default_rng(0).normal(size=(3, 8))
    which = np.random.default_rng(1).integers(3, size=(2, 4, 4))
    colors = visualization.color_features(kinds[which], 4)  # size of the grid: no interpolation
    for kind in range(3):
        assert len(np.unique(colors[which == kind], axis=0)) == 1
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 3


def test_constant_features_have_colors():
    assert visualization.color_features(np.ones((2, 4, 4, 8)), 32).shape == (2, 32, 32, 3)


def test_a_strip_is_a_png_of_at_most_eight_frames():
    uri = visualization.to_data_uri(np.zeros((20, 32, 32, 3), np.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (8 * 96 + 7 * visualization.GAP, 96)
