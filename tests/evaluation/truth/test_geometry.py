import numpy as np
import pytest
from PIL import Image

from invnext_jax.evaluation.truth.geometry import ClipGeometry
from invnext_jax.video import frame_converter
from invnext_jax.video.frame_converter import Window


def test_whole_square_keeps_everything():
    geometry = ClipGeometry.center((8, 8), 8)
    image = np.arange(128).reshape(2, 8, 8)
    np.testing.assert_array_equal(geometry.crop_image(image), image)
    boxes = np.random.default_rng(0).uniform(0, 0.5, (3, 4)) + [0, 0, 0.5, 0.5]
    np.testing.assert_allclose(geometry.crop_boxes(boxes)[0], boxes, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 48)])
@pytest.mark.parametrize("size", [16, 24])
def test_label_images_are_resized_as_by_pillow(shape, size):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1, *shape), np.uint8)
    window = frame_converter.square_crop(*shape)
    expected = Image.fromarray(image[0]).resize((size, size), Image.Resampling.NEAREST, box=window)
    got = ClipGeometry.center(shape, size).crop_image(image)[0]
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_boxes_of_a_wide_frame_by_hand():
    geometry = ClipGeometry.center((100, 200), 50)  # columns 50 to 150
    boxes = np.array(
        [
            [0.25, 0.0, 0.75, 1.0],
            [0.0, 0.2, 0.5, 0.4],
            [0.0, 0.0, 0.25, 1.0],
            [0.5, 0.5, 0.53, 0.53],
        ]
    )
    found, kept = geometry.crop_boxes(boxes, min_area=0.005)
    np.testing.assert_array_equal(kept, [True, True, False, False])
    np.testing.assert_allclose(found[:2], [[0, 0, 1, 1], [0, 0.2, 0.5, 0.4]], atol=1e-6)
    assert not found[2:].any()


def test_boxes_that_are_not_numbers_are_absent():
    found, kept = ClipGeometry.center((10, 10), 10).crop_boxes(np.full((2, 4), np.nan))
    assert not kept.any() and not found.any()


def test_points_move_with_the_frame():
    window, shape = Window(20, 10, 60, 50), (80, 100)
    geometry = ClipGeometry.of_window(window, shape, (20, 20))
    image = np.zeros((1, *shape), int)
    image[0, 30, 40] = 1
    point = geometry.crop_points(np.array([40.5 / 100, 30.5 / 80]))
    np.testing.assert_allclose(point, [20.5 / 40, 20.5 / 40])
    full = ClipGeometry.of_window(window, shape, (40, 40))
    np.testing.assert_array_equal(np.argwhere(full.crop_image(image)[0]), [[20, 20]])
