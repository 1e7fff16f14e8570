"""Only regular files with content are opened as videos."""

import os

import pytest

from invnext_jax.data import shards, video_io
from invnext_jax.video.demux import BadVideo


def make(kind, folder):
    path = folder / "clip.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("empty", "huge"):
        path.touch()
        os.truncate(path, 2**41 if kind == "huge" else 0)
    else:
        path.symlink_to(kind)
    return str(path)


@pytest.mark.parametrize("kind", ["pipe", "empty", "/dev/zero", "/proc/self/mem"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_pipes_devices_and_empty_files_are_bad_videos(kind, prefix, tmp_path):
    path = make(kind, tmp_path)
    reason = "empty file" if kind in ("empty", "/proc/self/mem") else "not a regular file"
    with pytest.raises(BadVideo, match=reason) as caught, video_io.open_source(prefix + path):
        pass
    # Neither kind is a failure of the storage.
    assert caught.value.kind == ("corrupt" if reason == "empty file" else "missing")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_files_with_the_size_of_the_memory_are_bad_videos(prefix, tmp_path):
    path = make("huge", tmp_path)  # as /proc/kcore
    with (
        pytest.raises(BadVideo, match="larger than") as caught,
        video_io.open_source(prefix + path),
    ):
        pass
    assert caught.value.kind == "corrupt"


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_shards_and_digests_are_read_from_regular_files(kind, tmp_path):
    path = make(kind, tmp_path)
    with pytest.raises(BadVideo, match="not a regular file"):
        shards.read_video(path, 0)
    with pytest.raises(OSError, match="not a regular file"):
        video_io.digest_file(path)
