"""A folder of good and bad videos for the tests of indexing."""

import shutil

import pytest


@pytest.fixture
def folder(world_folder, tmp_path):
    """Five good videos, one of them a copy, one renamed; an empty, a broken, a truncated one."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for i in range(3):
        shutil.copy(world_folder / "train" / f"{i:06d}.mp4", folder / f"{i}.mp4")
    shutil.copy(world_folder / "train" / "000001.mp4", folder / "deep" / "copy.mp4")
    shutil.copy(world_folder / "train" / "000003.mp4", folder / "renamed, really.avi")
    (folder / "empty.mp4").touch()
    (folder / "broken.mkv").write_bytes(b"no video")
    content = (folder / "2.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not listed")
    return folder
