"""What is known of a file holds as long as the file is the same."""

import os

import pytest

from invnext_jax.dataset_prep.probe_cache import ProbeCache
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError

GOOD = VideoProbe(1.0, 8, 32, 32, 8.0, "h264", 0, "0123")


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "ä\udcff.mp4"  # a name that is not UTF-8
    path.write_bytes(b"x")
    return str(path)


def recall(tmp_path, path, seconds=5.0):
    with ProbeCache(tmp_path / "notes.jsonl") as journal:
        return journal.recall(path, seconds)


def note(tmp_path, path, result):
    with ProbeCache(tmp_path / "notes.jsonl") as journal:
        journal.note(path, result)


def test_a_changed_file_is_not_known(tmp_path, video):
    assert recall(tmp_path, video) is None
    note(tmp_path, video, GOOD)
    assert recall(tmp_path, video) == GOOD
    os.utime(video, ns=(0, 5))
    assert recall(tmp_path, video) is None
    note(tmp_path, video, ProbeFailure("bad"))
    assert recall(tmp_path, video) == ProbeFailure("bad")
    os.remove(video)
    assert recall(tmp_path, video) is None


def test_what_may_pass_is_tried_again(tmp_path, video):
    note(tmp_path, video, ProbeFailure("network", passing=True))
    assert recall(tmp_path, video) is None
    note(tmp_path, video, ProbeFailure("hung", seconds=5.0))
    assert recall(tmp_path, video, 5.0) and recall(tmp_path, video, 6.0) is None


def test_one_run_at_a_time(tmp_path):
    with (
        ProbeCache(tmp_path / "notes.jsonl"),
        pytest.raises(UserError, match="another run is writing"),
    ):
        ProbeCache(tmp_path / "notes.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        ProbeCache(tmp_path / "no" / "notes.jsonl")
