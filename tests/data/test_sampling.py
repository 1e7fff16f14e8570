import numpy as np
import pytest

from invnext_jax.data import sampling


def test_sparse_sampling_takes_the_centre_of_each_segment():
    assert sampling.sample_sparse(80, 8, None).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert sampling.sample_sparse(8, 8, None).tolist() == list(range(8))


def test_random_sparse_sampling_stays_in_its_segment_and_fills_it():
    rng = np.random.default_rng(0)
    draws = np.stack([sampling.sample_sparse(40, 4, rng) for _ in range(500)])
    assert (draws // 10 == np.arange(4)).all()
    assert all(len(np.unique(column)) == 10 for column in draws.T)
    assert sampling.sample_sparse(8, 8, rng).tolist() == list(range(8))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_short_videos_repeat_frames_in_order(count):
    for rng in (None, np.random.default_rng(1)):
        index = sampling.sample_sparse(count, 8, rng)
        assert (np.diff(index) >= 0).all() and set(index) <= set(range(count))
        if rng is None:
            assert set(index) == set(range(count))
    # Each frame of a video of half the length comes twice, whatever is drawn.
    assert sampling.sample_sparse(4, 8, np.random.default_rng(2)).tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_dense_sampling_keeps_its_stride_and_takes_the_middle():
    assert sampling.sample_dense(100, 4, (5, 5), None).tolist() == [42, 47, 52, 57]
    assert sampling.sample_dense(16, 4, (5, 5), None).tolist() == [0, 5, 10, 15]
    assert sampling.sample_dense(100, 3, (2, 6), None).tolist() == [45, 49, 53]


def test_dense_sampling_repeats_the_last_frame_past_the_end():
    for rng in (None, np.random.default_rng(0)):
        assert sampling.sample_dense(8, 6, (3, 3), rng).tolist() == [0, 3, 6, 7, 7, 7]
        assert sampling.sample_dense(1, 4, (4, 4), rng).tolist() == [0, 0, 0, 0]


def test_random_dense_sampling_draws_every_stride_and_place():
    rng = np.random.default_rng(0)
    draws = np.stack([sampling.sample_dense(40, 4, (2, 4), rng) for _ in range(1000)])
    strides = np.diff(draws)
    assert (strides == strides[:, :1]).all() and draws.min() == 0 and draws.max() == 39
    for stride in (2, 3, 4):
        assert set(draws[strides[:, 0] == stride, 0]) == set(range(40 - 3 * stride))
    again = np.random.default_rng(0)
    np.testing.assert_array_equal(sampling.sample_dense(40, 4, (2, 4), again), draws[0])
