import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as reference

from invnext_jax.evaluation.metrics import segmentation


def blob(seed, height=40, width=56):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=(height, width)), 3) > 0.02


def test_region_similarity_equals_the_jaccard_index_of_scikit_learn():
    masks = np.stack([blob(0), blob(1)]), np.stack([blob(2), blob(1)])
    expected = [reference.jaccard_score(t.ravel(), p.ravel()) for p, t in zip(*masks, strict=True)]
    np.testing.assert_allclose(segmentation.region_similarity(*masks), expected)
    empty = np.zeros((3, 3))
    assert segmentation.region_similarity(empty, empty) == 1


def boundary(mask):
    """Finds boundary pixels by comparisons with the neighbors inside the frame."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                other = mask[min(y + dy, height - 1), min(x + dx, width - 1)]
                found[y, x] |= mask[y, x] != other
    return found


def f_by_dilation(predicted, truth):
    """Computes the F-measure with dilated boundaries, as in the development kit of DAVIS."""
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = y**2 + x**2 <= radius**2
    one, other = boundary(predicted), boundary(truth)
    precision = (one & ndimage.binary_dilation(other, disk)).sum() / one.sum()
    recall = (other & ndimage.binary_dilation(one, disk)).sum() / other.sum()
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("size", [(40, 56), (240, 300)])
def test_boundary_accuracy_equals_dilation(size):
    for seed in range(3):
        truth = blob(seed, *size)
        for predicted in (blob(seed + 9, *size), np.roll(truth, 2, axis=1)):
            np.testing.assert_array_equal(segmentation.find_boundary(truth), boundary(truth))
            got = segmentation.boundary_accuracy(predicted, truth)
            assert got == pytest.approx(f_by_dilation(predicted, truth))


def test_masks_without_a_boundary():
    empty, some = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    some[4:9, 4:9] = True
    assert segmentation.boundary_accuracy(empty, empty) == 1
    assert segmentation.boundary_accuracy(empty, some) == 0
    assert segmentation.boundary_accuracy(some, empty) == 0
    assert segmentation.boundary_accuracy(some, some) == 1
    assert segmentation.boundary_accuracy(some, np.roll(some, 11, axis=(0, 1))) == 0


def test_scores_of_a_video_are_means_of_objects_and_inner_frames():
    truth = np.zeros((4, 24, 24), int)
    truth[:, 2:10, 2:10], truth[:, 14:20, 14:20] = 1, 2
    predicted = truth.copy()
    predicted[[0, 3]] = 0  # frame 0 is given, and the last frame does not count
    predicted[1, 14:17, 14:20] = 0
    found = segmentation.score_masks(predicted, truth, [1, 2])
    assert found.region == pytest.approx((1 + 1 + 0.5 + 1) / 4) and found.objects == 2
    expected = segmentation.boundary_accuracy(predicted[1] == 2, truth[1] == 2)
    assert found.boundary == pytest.approx((3 + expected) / 4)
    assert found.mean == pytest.approx((found.region + found.boundary) / 2)
    last = segmentation.score_masks(predicted, truth, [1, 2], skip_last=False)
    assert last.region == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 0) / 6)
    assert np.isnan(segmentation.score_masks(predicted, truth, []).region)


def test_correct_keypoints_by_hand():
    joints = np.tile(np.array([[0.0, 0.0], [30.0, 40.0], [15.0, 20.0]]), (3, 1, 1))
    predicted = joints.copy()
    predicted[0] += 100  # frame 0 is given
    predicted[1, 0] += [3.0, 0.0]  # 0.1 of 0.6 x 50 pixels
    predicted[1, 1] += [0.0, 3.1]
    predicted[2, 1] += [9.0, 0.0]
    visible = np.ones((3, 3), bool)
    visible[2, 2] = False
    errors = segmentation.joint_errors(predicted, joints, visible)
    assert np.isnan(errors[0]).all() and np.isnan(errors[2, 2])
    np.testing.assert_allclose(errors[1:, :2], [[0.1, 3.1 / 30], [0, 0.3]])
    assert segmentation.pck([errors], 0.1 + 1e-9) == pytest.approx((1 + 0 + 1) / 3)
    assert segmentation.pck([errors, errors], 0.2) == pytest.approx((1 + 0.5 + 1) / 3)
    assert np.isnan(segmentation.pck([errors[:1]], 0.2))


def test_frames_without_visible_joints_do_not_count():
    joints = np.ones((2, 2, 2))
    errors = segmentation.joint_errors(joints, joints, np.zeros((2, 2), bool))
    assert np.isnan(errors).all()
