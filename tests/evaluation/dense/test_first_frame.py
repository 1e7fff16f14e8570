"""Labels on the token grid, and masks and points read from them, match the ground truth."""

import numpy as np
from scipy import ndimage

from invnext_jax.evaluation.dense import first_frame


def test_masks_become_the_covered_share_of_each_token():
    ids_hw = np.zeros((8, 12), int)
    ids_hw[:4, :6] = 3  # one and a half tokens
    ids_hw[6:, 8:] = 7  # half of a token
    labels_nk = first_frame.label_masks(ids_hw, [3, 7], (2, 3), 4)
    expected_k23 = [[[0, 0.5, 1], [1, 1, 0.5]], [[1, 0.5, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0.5]]]
    np.testing.assert_allclose(labels_nk.T.reshape(3, 2, 3), expected_k23)


def test_masks_of_any_size_are_resized_to_the_patches():
    ids_hw = np.arange(6 * 10).reshape(6, 10) % 2
    labels_nk = first_frame.label_masks(np.repeat(ids_hw, 3, axis=0), [1], (3, 5), 2)
    np.testing.assert_allclose(labels_nk, 0.5)


def test_points_are_found_again_within_a_fraction_of_a_token():
    grid = 10, 16
    points_j2 = np.random.default_rng(0).uniform(0.15, 0.85, (50, 2))
    labels_nj = first_frame.label_points(points_j2, grid)
    assert labels_nj.shape == (160, 50) and labels_nj.max() <= 1
    found_j2 = first_frame.read_points(labels_nj[None], grid)[0]
    distance_j2 = np.abs(found_j2 - points_j2) * grid[::-1]
    assert distance_j2.max() < 0.3 and distance_j2.mean() < 0.1


def test_points_without_a_label_are_outside_the_frame():
    found = first_frame.read_points(np.zeros((1, 12, 2)), (3, 4))
    np.testing.assert_array_equal(found, np.full((1, 2, 2), -1.0))


def test_masks_in_pixels_equal_scipy_interpolation():
    labels_nk = np.random.default_rng(0).dirichlet(np.ones(3), 20).astype(np.float32)
    found_hw = np.asarray(first_frame.read_masks(labels_nk[None], (4, 5), (28, 40)))[0]
    rows, columns = np.meshgrid(
        (np.arange(28) + 0.5) / 7 - 0.5, (np.arange(40) + 0.5) / 8 - 0.5, indexing="ij"
    )
    large_khw = [
        ndimage.map_coordinates(part, [rows, columns], order=1, mode="nearest")
        for part in np.moveaxis(labels_nk.reshape(4, 5, 3), -1, 0)
    ]
    np.testing.assert_array_equal(found_hw, np.argmax(large_khw, axis=0))
