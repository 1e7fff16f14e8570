import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.track_windows import WindowRules, longest_gap, select_windows

RULES = WindowRules(fps=None)


def present(*absent, objects=2, frames=16):
    """Returns presence [t k] that is True except for the given (object, frames) pairs."""
    found = np.ones((frames, objects), bool)
    for k, missing in absent:
        found[missing, k] = False
    return found


@pytest.mark.parametrize(
    ("present_tk", "kept"),
    [
        (present(), True),
        (present(objects=25), True),
        (present(objects=26), False),
        (present((0, [0]), (1, [0])), False),  # no object in the first frame
        (present((0, slice(0, 16))), True),  # an object that is absent in the first frame
        (present((0, [3, 6, 9, 12])), True),  # 12 of 16 frames
        (present((0, [2, 4, 6, 8, 10])), False),  # 11 of 16 frames, fewer than 70 %
        (present((0, [2, 3, 4]), (1, [6, 7, 8])), True),  # 10 common frames
        (present((0, [2, 3, 4]), (1, [6, 7, 8, 9])), False),  # 9 common frames
        (present((0, slice(5, 9))), True),  # a gap of 4 frames
    ],
)
def test_windows_by_the_rules_of_waymo(present_tk, kept):
    assert RULES.keeps(present_tk) == kept


def test_gaps_are_limited():
    rules = WindowRules(frames=30, fps=None)
    assert rules.keeps(present((0, slice(5, 10)), frames=30))
    assert not rules.keeps(present((0, slice(5, 11)), frames=30))
    assert rules.keeps(present((0, [5, 6, 8, 9]), frames=30))


@pytest.mark.parametrize(
    ("text", "gap"), [("1111", 0), ("1001", 2), ("0001", 3), ("1100", 2), ("0000", 4)]
)
def test_longest_gap(text, gap):
    assert longest_gap(np.array([letter == "1" for letter in text])) == gap


def select(present_tk, rules, video_fps):
    frame_n, object_n = np.nonzero(present_tk)
    return select_windows(frame_n, object_n, len(present_tk), rules, video_fps)


def test_starts_are_three_frames_apart_at_the_lower_rate():
    windows = select(present(frames=60), WindowRules(), video_fps=10.0)
    assert [window[0] for window in windows] == [0, 6, 12, 18, 24]  # 30 frames, windows of 16
    assert all(np.diff(window).tolist() == [2] * 15 for window in windows)


def test_search_continues_after_a_window_that_is_refused():
    present_tk = present((0, slice(0, 16)), (1, slice(0, 1)), frames=24)
    starts = [window[0] for window in select(present_tk, RULES, 10.0)]
    assert starts == [1, 4, 7]


@pytest.mark.parametrize("fps", [1.0, 5.0, 12.0, 1e300])
def test_windows_are_those_of_a_search_over_all_frames(fps):
    present_tk = np.random.default_rng(0).random((200, 3)) < 0.8
    present_tk[60:110], present_tk[190:] = False, False
    rules = WindowRules(frames=8, stride=3, min_together=3)
    step, start, expected = rules.step(fps), 0, []
    while step < 200 and start + 8 <= len(present_tk[::step]):
        kept = rules.keeps(present_tk[::step][start : start + 8])
        expected += [step * start] if kept else []
        start += 3 if kept else 1
    assert [window[0] for window in select(present_tk, rules, fps)] == expected
    assert expected or fps > 5


@pytest.mark.parametrize(
    "fields", [{"frames": 1}, {"stride": 0}, {"max_objects": 0}, {"frames": 8}]
)
def test_rules_that_cannot_be_satisfied_are_errors(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        WindowRules(**fields)
