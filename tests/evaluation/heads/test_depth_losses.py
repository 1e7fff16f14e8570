import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax.evaluation.heads import depth_losses as dl

RNG = np.random.default_rng(0)
SHAPE = (2, 3, 8, 8)
TARGET = RNG.uniform(0.5, 5, SHAPE).astype(np.float32)
DEPTH = (TARGET * 1.3 + RNG.normal(0, 0.5, SHAPE)).clip(0.1).astype(np.float32)
MASK = RNG.uniform(size=SHAPE) < 0.7


def test_losses_of_hand_values():
    depth, target = np.float32([1, 2, 4, 7]), np.float32([1, 1, 1, np.nan])
    mask = np.array([True, True, True, False])
    np.testing.assert_allclose(dl.l2_loss(depth, target, mask), (0 + 1 + 9) / 3, rtol=1e-6)
    logs = np.log([1.0, 2.0, 4.0])
    expected = np.mean(logs**2) - 0.85 * np.mean(logs) ** 2
    got = dl.silog_loss(depth, target, mask, variance_focus=0.85)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    got = dl.trimmed_l1(depth, target, mask, trim=0.3)  # the largest of three is ignored
    np.testing.assert_allclose(got, (0 + 1) / 3, rtol=1e-6)


def test_silog_ignores_the_scale():
    got = [dl.silog_loss(k * DEPTH, TARGET, MASK, variance_focus=1.0) for k in (1, 7)]
    assert got[0] > 0.01
    np.testing.assert_allclose(*got, rtol=1e-4)


def gradient_loss(depth, target, mask, scales):
    """Computes the loss with loops over pixels."""
    total = 0.0
    for step in 2 ** np.arange(scales):
        error = (depth - target)[:, ::step, ::step].astype(np.float64)
        valid = mask[:, ::step, ::step]
        found = 0.0
        for i, y, x in zip(*np.nonzero(valid), strict=True):
            for other in ((i, y + 1, x), (i, y, x + 1)):
                if other[1] < valid.shape[1] and other[2] < valid.shape[2] and valid[other]:
                    found += abs(error[i, y, x] - error[other])
        total += found / valid.sum()
    return total


@pytest.mark.parametrize("scales", [1, 4])
def test_gradient_loss_equals_the_formula(scales):
    parts = DEPTH[0], TARGET[0], MASK[0]
    got = dl.gradient_loss(*parts, scales=scales)
    np.testing.assert_allclose(got, gradient_loss(*parts, scales), rtol=1e-5)


def test_robust_normalization_uses_valid_pixels():
    got = np.asarray(dl.normalize_robustly(DEPTH[0], MASK[0]))
    for x, y, mask in zip(DEPTH[0], got, MASK[0], strict=True):
        median = np.sort(x[mask])[(mask.sum() - 1) // 2]
        expected = (x - median) / np.abs(x[mask] - median).mean()
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_alignment_equals_least_squares():
    got = np.asarray(dl.align_least_squares(DEPTH, TARGET, MASK))
    for x, y, z, mask in zip(DEPTH, TARGET, got, MASK, strict=True):
        matrix = np.stack([x[mask], np.ones(mask.sum())], axis=1)
        (scale, shift), *_ = np.linalg.lstsq(matrix, y[mask].astype(np.float64))
        np.testing.assert_allclose(z, scale * x + shift, rtol=1e-4, atol=1e-4)


def test_temporal_loss_equals_the_formula():
    smooth = TARGET[:, :1] + RNG.normal(0, 0.3, SHAPE).astype(np.float32)
    errors = []
    for b in range(2):
        for t in (1, 2):
            valid = smooth[b, t][MASK[b, t]]
            largest = 0.05 * (valid.max() - valid.min())
            change = smooth[b, t] - smooth[b, t - 1]
            used = MASK[b, t] & MASK[b, t - 1] & (np.abs(change) < largest)
            errors += list(np.abs(DEPTH[b, t] - DEPTH[b, t - 1] - change)[used])
    assert 20 < len(errors) < MASK.sum() / 2
    got = dl.temporal_gradient_loss(DEPTH, smooth, MASK)
    np.testing.assert_allclose(got, np.mean(errors), rtol=1e-5)


def test_video_loss_ignores_scale_and_shift_and_is_zero_for_the_target():
    video = [dl.video_depth_loss(x, TARGET, MASK) for x in (DEPTH, 3 * DEPTH + 2, 2 * TARGET + 1)]
    assert video[0] > 0.1
    np.testing.assert_allclose(video[1], video[0], rtol=1e-3)
    np.testing.assert_allclose(video[2], 0, atol=1e-4)


@pytest.mark.parametrize("name", dl.LOSSES)
@pytest.mark.parametrize("valid", ["some", "none", "constant"])
def test_invalid_pixels_have_no_gradient(name, valid):
    mask = MASK if valid == "some" else np.zeros_like(MASK)
    depth = np.ones_like(DEPTH) if valid == "constant" else DEPTH
    mask = MASK if valid == "constant" else mask
    target = np.where(mask, TARGET, np.nan)
    loss, grad = jax.value_and_grad(dl.LOSSES[name])(jnp.asarray(depth), target, mask)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(np.asarray(grad)[~mask], 0)
    if valid == "none":
        assert loss == 0
