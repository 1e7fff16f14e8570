"""Propagated labels equal those of a NumPy implementation, and are exact for perfect tokens."""

import jax
import numpy as np
import pytest
from golden_cases import assert_near

from invnext_jax.evaluation.dense import propagation
from invnext_jax.evaluation.dense.propagation import PropagationOptions

GRID = 4, 6


def propagate(tokens_tnd, labels_nk, grid=GRID, **options):
    run = jax.jit(propagation.propagate_labels, static_argnums=(2, 3))
    return np.asarray(run(tokens_tnd, labels_nk, grid, PropagationOptions(**options)))


def propagate_slowly(tokens_tnd, labels_nk, grid, context, temperature, neighbors, radius):
    """Propagates labels with loops over frames and tokens, in float64."""
    tokens_tnd = np.float64(tokens_tnd)
    tokens_tnd = tokens_tnd / np.linalg.norm(tokens_tnd, axis=-1, keepdims=True)
    place = [divmod(n, grid[1]) for n in range(grid[0] * grid[1])]
    found = [np.float64(labels_nk)]
    for t in range(1, len(tokens_tnd)):
        frames = [0] + [max(0, t - 1 - i) for i in range(context)]
        labels_nk = np.zeros_like(found[0])
        for n, (row, column) in enumerate(place):
            candidates = []
            for number, frame in enumerate(frames):
                for m, (other_row, other_column) in enumerate(place):
                    distance = ((row - other_row) ** 2 + (column - other_column) ** 2) ** 0.5
                    if number == 0 or distance < radius:
                        similarity = tokens_tnd[t, n] @ tokens_tnd[frame, m]
                        candidates.append((similarity, found[frame][m]))
            candidates.sort(key=lambda pair: -pair[0])
            best = candidates[:neighbors]
            weights = np.exp([similarity / temperature for similarity, _ in best])
            for weight, (_, label_k) in zip(weights / weights.sum(), best, strict=True):
                labels_nk[n] += weight * label_k
        found.append(labels_nk)
    return np.stack(found)


@pytest.mark.parametrize(
    ("context", "neighbors", "radius"), [(1, 1, 1.5), (3, 5, 2.0), (20, 7, 20.0), (4, 7, 1.0)]
)
def test_labels_equal_a_loop_in_numpy(context, neighbors, radius):
    rng = np.random.default_rng(0)
    tokens_tnd = rng.normal(size=(7, 24, 5)).astype(np.float32)
    labels_nk = rng.dirichlet(np.ones(3), 24).astype(np.float32)
    options = {"context": context, "temperature": 0.3, "neighbors": neighbors, "radius": radius}
    found = propagate(tokens_tnd, labels_nk, **options)
    assert_near(found, propagate_slowly(tokens_tnd, labels_nk, GRID, **options), 1e-5)


def test_chunks_do_not_change_the_labels(monkeypatch):
    rng = np.random.default_rng(1)
    tokens_tnd = rng.normal(size=(4, 24, 5)).astype(np.float32)
    labels_nk = rng.dirichlet(np.ones(3), 24).astype(np.float32)
    at_once = propagate(tokens_tnd, labels_nk)
    monkeypatch.setattr(propagation, "MAX_AFFINITIES", 24 * 21 * 5)
    assert propagation._count_chunks(24, 21) == 6
    assert_near(propagate(tokens_tnd, labels_nk, context=20), at_once, 1e-5)


def test_unique_tokens_carry_their_labels_along():
    codes_nd = np.eye(24, dtype=np.float32)
    order_tn = np.stack([np.roll(np.arange(24), t) for t in range(6)])
    labels_nk = np.eye(3, dtype=np.float32)[np.arange(24) % 3]
    found = propagate(codes_nd[order_tn], labels_nk, neighbors=1)
    np.testing.assert_array_equal(found, labels_nk[order_tn])


def test_equal_tokens_give_every_token_the_same_label():
    labels_nk = np.eye(2, dtype=np.float32)[(np.arange(24) == 23).astype(int)]
    found = propagate(np.ones((3, 24, 4), np.float32), labels_nk)
    np.testing.assert_allclose(found[1:, :, 1], 0, atol=1e-6)


def test_zero_tokens_give_finite_labels():
    labels_nk = np.ones((24, 2), np.float32) / 2
    assert np.isfinite(propagate(np.zeros((3, 24, 4), np.float32), labels_nk)).all()
