"""Weighted nearest neighbors agree with scikit-learn and do not depend on the chunks."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from invnext_jax.evaluation import nearest_neighbors

TEMPERATURE = 0.07


def make_data(seed=0, train=300, queries=90, width=24, classes=7):
    rng = np.random.default_rng(seed)
    centers_cd = rng.normal(size=(classes, width))
    labels = [rng.integers(classes, size=count) for count in (train, queries)]
    features = [centers_cd[y] + 1.2 * rng.normal(size=(len(y), width)) for y in labels]
    train_nd, query_bd = (nearest_neighbors.l2_normalize(x) for x in features)
    return train_nd, labels[0], query_bd, labels[1]


def vote(train_nd, labels_n, query_bd, neighbors):
    similarity_bk, neighbor_bk = nearest_neighbors.find_neighbors(
        query_bd, train_nd, max(neighbors)
    )
    return nearest_neighbors.vote(
        similarity_bk,
        neighbor_bk,
        labels_n,
        neighbors=neighbors,
        temperature=TEMPERATURE,
        classes=labels_n.max() + 1,
    )


def test_votes_equal_scikit_learn():
    train_nd, labels_n, query_bd, _ = make_data()
    votes_sbc = vote(train_nd, labels_n, query_bd, (10, 20, 100))
    for k, votes_bc in zip((10, 20, 100), votes_sbc, strict=True):
        reference = KNeighborsClassifier(
            k,
            metric="cosine",
            algorithm="brute",
            weights=lambda distance: np.exp((1 - distance) / TEMPERATURE),
        ).fit(train_nd, labels_n)
        np.testing.assert_allclose(votes_bc, reference.predict_proba(query_bd), atol=1e-5)


def test_result_does_not_depend_on_chunks(monkeypatch):
    train_nd, _, query_bd, _ = make_data()
    whole = nearest_neighbors.find_neighbors(query_bd, train_nd, 5)
    monkeypatch.setattr(nearest_neighbors, "CHUNK", 7 * len(train_nd))
    parts = nearest_neighbors.find_neighbors(query_bd, train_nd, 5)
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-6)


def test_equal_neighbors_come_in_the_order_of_their_positions():
    train_nd = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 0]]
    _, neighbor_bk = nearest_neighbors.find_neighbors(train_nd[:1], train_nd, 4)
    assert neighbor_bk.tolist() == [[0, 2, 4, 1]]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_normalized_features_have_length_one(scale):
    x_bd = scale * np.random.default_rng(1).normal(size=(5, 8))
    x_bd[2] = 0
    length_b = np.linalg.norm(nearest_neighbors.l2_normalize(x_bd), axis=1)
    np.testing.assert_allclose(length_b, [1, 1, 0, 1, 1], atol=1e-6)


class FakeFeatures:
    """Pooled features of videos whose manifest has every second row."""

    def __init__(self, x_bd):
        self._x_bd, self.index_b = x_bd, 2 * np.arange(len(x_bd))

    def __len__(self):
        return len(self._x_bd)

    def pooled(self, pooling, rows_b):
        assert pooling == "mean"
        return self._x_bd[rows_b]


def test_nearest_videos_are_stored_by_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "BLOCK", 7)
    monkeypatch.setattr(nearest_neighbors, "MAX_QUERIES", 10)
    train_nd, _, query_bd, _ = make_data()
    found = nearest_neighbors.find_nearest_videos(FakeFeatures(train_nd), FakeFeatures(query_bd))
    assert found.index_b[[0, -1]].tolist() == [0, 2 * (len(query_bd) - 1)]
    assert len(found.index_b) == 10
    similarity_bn = query_bd[found.index_b // 2] @ train_nd.T
    expected_bk = np.argsort(-similarity_bn, axis=1)[:, : nearest_neighbors.NEIGHBORS]
    np.testing.assert_array_equal(found.neighbor_bk, 2 * expected_bk)
    path = tmp_path / "rows" / "neighbors.npz"
    nearest_neighbors.write_nearest_videos(path, found)
    for part, stored in zip(found, nearest_neighbors.read_nearest_videos(path), strict=True):
        np.testing.assert_array_equal(part, stored)
    path.write_bytes(path.read_bytes()[:100])
    assert nearest_neighbors.read_nearest_videos(path) is None
    assert nearest_neighbors.read_nearest_videos(tmp_path / "none.npz") is None


@pytest.mark.parametrize(
    "change",
    [
        *({"index_b": value} for value in (np.array([-1, 0]), np.arange(3), np.arange(2.0))),
        *({"neighbor_bk": value} for value in (np.arange(2), -np.ones((2, 3), int))),
        *({"neighbor_bk": np.zeros((2, 0), int)}, {"similarity_bk": np.ones((2, 2))}),
    ],
)
def test_neighbors_of_wrong_types_and_shapes_are_not_read(tmp_path, change):
    arrays = {"index_b": np.arange(2), "neighbor_bk": np.zeros((2, 3), int)}
    arrays["similarity_bk"] = np.ones((2, 3))
    np.savez(tmp_path / "a.npz", **arrays)
    assert nearest_neighbors.read_nearest_videos(tmp_path / "a.npz") is not None
    np.savez(tmp_path / "a.npz", **{**arrays, **change})
    assert nearest_neighbors.read_nearest_videos(tmp_path / "a.npz") is None
