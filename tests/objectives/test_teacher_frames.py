"""The choice of the frames that the image teacher encodes, compared with NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.objectives import teacher_frames


def test_frames_are_distinct_ascending_and_equally_likely():
    frames_bf = np.asarray(teacher_frames.sample_frames(jax.random.key(0), 4000, 5, 2))
    assert frames_bf.shape == (4000, 2) and np.all(np.diff(frames_bf, axis=1) > 0)
    pairs, counts = np.unique(frames_bf, axis=0, return_counts=True)
    assert pairs.tolist() == [list(pair) for pair in itertools.combinations(range(5), 2)]
    expected, chi_squared_999 = 4000 / 10, 27.9  # 9 degrees of freedom
    assert np.sum((counts - expected) ** 2 / expected) < chi_squared_999


def test_share_is_rounded_to_whole_frames():
    counts = [teacher_frames.count_frames(16, share) for share in (1.0, 0.5, 0.25, 0.1, 0.02)]
    assert counts == [16, 8, 4, 2, 0]


def test_nearest_frame_is_the_earlier_of_two_at_the_same_distance():
    frames_bf = jnp.array([[1, 5, 6], [0, 2, 7]])
    index_bt = teacher_frames.nearest_frames(frames_bf, 8)
    assert index_bt.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, 2, 2]]


def test_tokens_are_those_of_the_visible_positions():
    frames_bf, keep_bk = jnp.array([[1, 3]]), jnp.array([[2, 7, 9, 13, 19]])
    index_bk, weight_bk = teacher_frames.locate_tokens(frames_bf, keep_bk, 4, 5)
    # Positions 7 and 9 are in frame 1, and 19 is in frame 3; the others get some token.
    assert index_bk.tolist()[0][1:3] == [2, 4] and index_bk.tolist()[0][4] == 5 + 4
    assert weight_bk.tolist() == [[0, 2, 2, 0, 2]] and int(index_bk.max()) < 10
