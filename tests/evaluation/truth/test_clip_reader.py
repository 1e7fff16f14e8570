"""A clip from a worker process is compared with the task."""

import numpy as np
import pytest
from fakes import FailingSampler

from invnext_jax.data.manifest import VideoRecord
from invnext_jax.evaluation.truth.clip_reader import _ReadClip

RECORD = VideoRecord(0, "/a.mp4", "", None, None, {})
CLIP = {
    "video_thwc": np.zeros((8, 16, 16, 3), np.uint8),
    "frame_t": np.arange(8),
    "window": np.array([2, 0, 10, 8]),
    "frame_size": np.array([8, 12]),
}


@pytest.mark.parametrize(
    ("change", "is_valid"),
    [
        ({}, True),
        ({"video_thwc": np.zeros((3, 16, 16, 3), np.uint8), "frame_t": np.arange(3)}, False),
        ({"frame_t": np.arange(8) - 1}, False),
        ({"window": np.array([10, 0, 2, 8])}, False),
        ({"window": np.array([2, 8, 10, 0])}, False),
        ({"window": np.array([-1, 0, 10, 8])}, False),
        ({"window": np.array([2, 0, 13, 8])}, False),
        ({"frame_size": np.array([0, 12])}, False),
    ],
)
def test_clips_have_the_frames_of_the_task_and_a_window_in_the_video(change, is_valid):
    assert _ReadClip().is_valid(CLIP | change, RECORD, FailingSampler(False), None) == is_valid
