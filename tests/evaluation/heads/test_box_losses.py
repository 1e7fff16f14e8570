import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from invnext_jax.evaluation.heads import box_losses as bl

RNG = np.random.default_rng(0)


def boxes(count):
    low, size = RNG.uniform(0, 0.7, (count, 2)), RNG.uniform(0.02, 0.5, (count, 2))
    return np.concatenate([low, low + size], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
        ((0, 0, 1, 1), (0, 0, 0.5, 1), 0.5),
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),  # hull 3, union 2
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9),  # overlap 1, union 7, hull 9
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_generalized_iou_of_hand_values(a, b, expected):
    np.testing.assert_allclose(bl.generalized_iou(np.float32(a), np.float32(b)), expected, 1e-6)


def test_losses_equal_torch_and_transformers():
    torch, _ = parity.import_transformers()
    from transformers.loss.loss_for_object_detection import generalized_box_iou

    a, b = boxes(20), boxes(20)
    expected = generalized_box_iou(torch.from_numpy(a), torch.from_numpy(b)).diagonal()
    np.testing.assert_allclose(bl.generalized_iou(a, b), expected, rtol=1e-4, atol=1e-6)
    for beta in (0.1, 1.0):
        expected = torch.nn.functional.smooth_l1_loss(
            torch.from_numpy(a), torch.from_numpy(b), reduction="none", beta=beta
        )
        np.testing.assert_allclose(bl.smooth_l1(a, b, beta), expected, rtol=1e-5, atol=1e-7)


def test_mean_is_over_visible_boxes():
    a, b = boxes(6).reshape(2, 3, 4), boxes(6).reshape(2, 3, 4)
    mask = np.array([[True, False, True], [False, False, True]])
    each = bl.smooth_l1(a, b).mean(-1) + 0.5 * (1 - bl.generalized_iou(a, b))
    np.testing.assert_allclose(bl.box_loss(a, b, mask), np.asarray(each)[mask].mean(), rtol=1e-6)
    assert bl.box_loss(a, b, np.zeros_like(mask)) == 0


def test_gradients_of_degenerate_boxes_are_finite():
    a = jnp.asarray([[0, 0, 0, 0], [0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.4, 0.4]], jnp.float32)
    b = jnp.asarray([[0, 0, 0, 0], [0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4]], jnp.float32)
    value, grad = jax.value_and_grad(bl.box_loss)(a, b, np.ones(3, bool))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert -1 <= float(bl.generalized_iou(a, b).min())
