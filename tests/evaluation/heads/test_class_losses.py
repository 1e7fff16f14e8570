import jax
import numpy as np
import pytest
from parity import numpy_of
from reference_models import draw

from invnext_jax.evaluation.heads import class_losses as cl

LOGITS = 2 * draw((6, 5))
LABELS = np.int32([0, 4, 2, 2, 1, 3])


def torch_cross_entropy(torch, logits, labels, **options):
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels).long()
    return numpy_of(torch.nn.functional.cross_entropy(logits, labels, **options))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(reference, smoothing):
    expected = reference(
        lambda hf: torch_cross_entropy(hf.torch, LOGITS, LABELS, label_smoothing=smoothing)
    )
    got = cl.soft_cross_entropy(LOGITS, cl.soft_targets(LABELS, 5, smoothing))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_cross_entropy_with_labels_equals_torch(reference):
    labels = np.concatenate([LABELS[:4], [-1, -1]])
    expected = reference(lambda hf: torch_cross_entropy(hf.torch, LOGITS, labels, ignore_index=-1))
    loss, grad = jax.value_and_grad(cl.cross_entropy)(LOGITS, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not grad[4:].any() and np.abs(grad[:4]).min() > 0
    assert cl.cross_entropy(LOGITS, np.full(6, -1)) == 0


def test_clips_without_label_do_not_count():
    labels = np.concatenate([LABELS[:4], [-1, -1]])
    got = cl.soft_cross_entropy(LOGITS, cl.soft_targets(labels, 5, 0.1))
    expected = cl.soft_cross_entropy(LOGITS[:4], cl.soft_targets(LABELS[:4], 5, 0.1))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert cl.soft_cross_entropy(LOGITS, cl.soft_targets(np.full(6, -1), 5)) == 0


def test_focal_loss_of_hand_values():
    """A logit of 0: 0.25 * 0.5^2 * ln 2 for the class, 0.75 * 0.5^2 * ln 2 for each other."""
    got = cl.sigmoid_focal_loss(np.zeros((1, 3), np.float32), np.float32([[1, 0, 0]]))
    np.testing.assert_allclose(got, (0.25 + 2 * 0.75) * 0.25 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1, 2.0), (0.6, 0.0)])
def test_focal_loss_equals_the_formula(alpha, gamma):
    target = np.eye(5)[LABELS]
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    p_true = np.where(target == 1, p, 1 - p)
    weight = np.where(target == 1, alpha, 1 - alpha) if alpha >= 0 else 1.0
    expected = np.sum(-weight * (1 - p_true) ** gamma * np.log(p_true))
    got = cl.sigmoid_focal_loss(LOGITS, target.astype(np.float32), alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_focal_loss_of_large_logits_is_finite():
    logits = np.float32([[200, -200, 200, -200, 0]])
    grad = jax.grad(cl.sigmoid_focal_loss)(logits, np.float32([[0, 1, 1, 0, 1]]))
    assert np.isfinite(grad).all()
