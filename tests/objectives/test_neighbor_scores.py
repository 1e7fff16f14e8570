"""Leave-one-out accuracy against scikit-learn, and the effective rank against NumPy."""

import jax
import numpy as np
import pytest
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from invnext_jax.evaluation import nearest_neighbors
from invnext_jax.objectives import neighbor_scores


def test_accuracy_equals_scikit_learn():
    rng = np.random.default_rng(0)
    label_n = rng.integers(4, size=60).astype(np.int32)
    x_nd = rng.normal(size=(60, 8)) + 1.5 * np.eye(4, 8)[label_n]
    x_nd = nearest_neighbors.l2_normalize(x_nd)
    model = KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    predicted_n = cross_val_predict(model, x_nd, label_n, cv=LeaveOneOut())
    # Padding, clips that could not be read and clips without a label do not count.
    x, labels = np.concatenate([x_nd, x_nd[:10]]), np.concatenate([label_n, label_n[:10]])
    labels[65:] = -1
    valid = np.arange(70) < 60
    valid[65:] = True
    parts = [(x[:40], valid[:40]), (np.pad(x[40:], ((0, 10), (0, 0))), np.pad(valid[40:], (0, 10)))]
    parts = [tuple(map(jax.numpy.asarray, part)) for part in parts]
    found = neighbor_scores.score_tasks(parts, {"a": labels}, classes={"a": 4}, neighbors=5)
    assert float(found["a"]) == pytest.approx(np.mean(predicted_n == label_n))
    x_nd = x[valid]
    spectrum_d = np.linalg.svd(x_nd - x_nd.mean(axis=0), compute_uv=False) ** 2
    share_d = spectrum_d / spectrum_d.sum()
    rank = np.exp(-np.sum(share_d * np.log(share_d)))
    assert float(found["feature_rank"]) == pytest.approx(rank, rel=1e-4)


def test_a_note_says_how_many_neighbors_vote_if_there_are_fewer_videos():
    labels = {"shape": np.array([0, 1, 1, -1, 0]), "motion": np.array([0, 1, 2, 0, 1])}
    note = neighbor_scores.describe_neighbors(4, labels)
    assert "config.eval.neighbors=4 is more than" in note and "(3 for shape), so all" in note
    assert neighbor_scores.describe_neighbors(3, labels) == ""
