import jax
import numpy as np

from invnext_jax.evaluation.augmentation.cutmix import cutmix, sample_boxes

CLIPS = np.random.default_rng(0).integers(0, 256, (6, 2, 20, 30, 3), np.uint8)
TARGETS = np.eye(6, dtype=np.float32)


def test_targets_are_the_shares_of_the_pixels():
    (mixed, (target,)) = jax.jit(lambda k: cutmix(k, CLIPS, [TARGETS], 1.0))(jax.random.key(0))
    other = CLIPS[::-1]
    for i in range(6):
        from_self = (np.asarray(mixed[i]) == CLIPS[i]).all(-1)
        from_other = (np.asarray(mixed[i]) == other[i]).all(-1)
        assert (from_self | from_other).all()
        np.testing.assert_array_equal(from_self[0], from_self[1])  # the same in all frames
        np.testing.assert_allclose(from_self[0].mean(), target[i, i], atol=1e-6)
        np.testing.assert_allclose(1 - from_self[0].mean(), target[i, 5 - i], atol=1e-6)
    assert 0.2 < np.diag(target).mean() < 0.95


def test_boxes_are_rectangles_with_the_expected_area():
    """The mean kept fraction is above 0.5, because boxes are cut off at the border."""
    masks, share = sample_boxes(jax.random.key(1), 2000, 24, 32, 1.0)
    masks = np.asarray(masks)
    rows, columns = masks.any(2), masks.any(1)
    np.testing.assert_array_equal(masks, rows[:, :, None] & columns[:, None])
    np.testing.assert_allclose(share, 1 - masks.mean((1, 2)), atol=1e-6)
    # A side of relative length s covers s - s^2 / 4 on average, and s^2 is uniform.
    side = np.sqrt(np.random.default_rng(0).uniform(size=200_000))
    expected = 1 - np.mean((side - side**2 / 4) ** 2)
    assert abs(np.mean(share) - expected) < 0.03


def test_alpha_zero_mixes_nothing():
    mixed, targets = cutmix(jax.random.key(0), CLIPS, [TARGETS], 0.0)
    np.testing.assert_array_equal(mixed, CLIPS)
    np.testing.assert_array_equal(targets[0], TARGETS)
