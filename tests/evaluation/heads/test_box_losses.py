import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import numpy_of

from invnext_jax.evaluation.heads import box_losses as bl


def boxes(count, seed):
    rng = np.random.RandomState(seed)  # the same numbers in all NumPy versions
    low, size = rng.uniform(0, 0.7, (count, 2)), rng.uniform(0.02, 0.5, (count, 2))
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


def test_generalized_iou_equals_transformers(reference):
    a, b = boxes(20, 0), boxes(20, 1)

    def compute(hf):
        from transformers.loss.loss_for_object_detection import generalized_box_iou

        return numpy_of(generalized_box_iou(*map(hf.torch.from_numpy, (a, b))).diagonal())

    np.testing.assert_allclose(bl.generalized_iou(a, b), reference(compute), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_smooth_l1_equals_torch(reference, beta):
    a, b = boxes(20, 0), boxes(20, 1)

    def compute(hf):
        loss = hf.torch.nn.functional.smooth_l1_loss
        return numpy_of(loss(*map(hf.torch.from_numpy, (a, b)), reduction="none", beta=beta))

    np.testing.assert_allclose(bl.smooth_l1(a, b, beta), reference(compute), rtol=1e-5, atol=1e-7)


def test_mean_is_over_visible_boxes():
    a, b = boxes(6, 0).reshape(2, 3, 4), boxes(6, 1).reshape(2, 3, 4)
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
