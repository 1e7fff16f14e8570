"""Scores of videos are read back as they were written, and a missing file is not an error."""

import numpy as np
import pytest

from invnext_jax.evaluation import video_scores
from invnext_jax.evaluation.video_scores import VideoScores


def test_scores_are_read_back(tmp_path):
    path = tmp_path / "rows" / "knn-encoder.npz"
    weighted = VideoScores(np.array([4, 2]), np.array([0.5, 1.0]), np.array([2.0, 3.0]))
    plain = VideoScores(
        np.array([7, 8, 9]),
        np.array([True, False, True]),
        predicted_b=np.array([4, 0, 2]),
        class_b=np.array([4, 1, 2]),
    )
    video_scores.write(path, [plain, None, weighted])
    found = video_scores.read(path, 0)
    np.testing.assert_array_equal(found.index_b, [7, 8, 9])
    np.testing.assert_array_equal(found.score_b, [1, 0, 1])
    np.testing.assert_array_equal(found.weight_b, [1, 1, 1])
    np.testing.assert_array_equal(found.predicted_b, [4, 0, 2])
    np.testing.assert_array_equal(found.class_b, [4, 1, 2])
    assert video_scores.read(path, 2)[3:] == (None, None)
    np.testing.assert_array_equal(video_scores.read(path, 2).weight_b, [2, 3])
    assert video_scores.read(path, 1) is None


def test_missing_and_damaged_files_have_no_scores(tmp_path):
    assert video_scores.read(tmp_path / "none.npz", 0) is None
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 not an archive")
    assert video_scores.read(tmp_path / "damaged.npz", 0) is None


def test_files_that_are_large_after_decompression_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(video_scores, "MAX_BYTES", 2**20)
    zeros = np.zeros(2**19, np.float32)
    np.savez_compressed(tmp_path / "a.npz", index_0=zeros, score_0=zeros, weight_0=zeros)
    assert (tmp_path / "a.npz").stat().st_size < 2**16
    assert video_scores.read(tmp_path / "a.npz", 0) is None


@pytest.mark.parametrize(
    "change",
    [
        *({"index_0": value} for value in (np.array([0, 0]), np.array([-1, 2]), np.arange(2.0))),
        *({"index_0": value} for value in (np.arange(3), np.array(1), np.arange(2)[None])),
        *({"score_0": value} for value in (np.arange(3.0), np.array(["a", "b"]), np.ones(2) * 1j)),
        *({"score_0": np.array([0, np.inf])}, {"weight_0": np.array([0, np.nan])}),
        *({"weight_0": -np.ones(2)}, {"predicted_0": np.arange(3)}, {"predicted_0": np.ones(2)}),
        *({"class_0": np.arange(3)}, {"class_0": np.ones(2)}),
    ],
)
def test_scores_of_wrong_types_and_shapes_are_not_read(tmp_path, change):
    arrays = {"index_0": np.arange(2), "score_0": np.ones(2), "weight_0": np.ones(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    assert video_scores.read(tmp_path / "a.npz", 0) is not None
    np.savez(tmp_path / "a.npz", **{**arrays, **change})
    assert video_scores.read(tmp_path / "a.npz", 0) is None


def test_scores_of_too_many_videos_are_not_read(tmp_path, monkeypatch):
    video_scores.write(tmp_path / "a.npz", [VideoScores(np.arange(9), np.ones(9))])
    monkeypatch.setattr(video_scores, "MAX_VIDEOS", 8)
    assert video_scores.read(tmp_path / "a.npz", 0) is None
