"""Scans of folders with links, various extensions and unreadable folders."""

import os

import pytest

from invnext_jax.video_lists.folder_scan import scan_folder


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path / "a", "1.mp4")
    touch(tmp_path / "b/deep", "2.mp4")
    touch(tmp_path.parent / f"{tmp_path.name}-outside", "3.mp4")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "0-early").symlink_to(tmp_path / "b")
    (tmp_path / "outside").symlink_to(tmp_path.parent / f"{tmp_path.name}-outside")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "outside-again").symlink_to(tmp_path / "outside")
    found = scan_folder(tmp_path)
    assert found.videos == [
        str(tmp_path / name) for name in ("a/1.mp4", "b/deep/2.mp4", "outside/3.mp4")
    ]
    assert found.left_out == {"": 1}  # the link "itself"


def test_files_that_are_left_out_are_counted_by_extension(tmp_path):
    touch(tmp_path, "00001.MTS", "a.gif", "b.Mp4", "c.asf")
    touch(tmp_path / "x", "a.txt", "b.TXT", "c.jpg", "noext", ".hidden")
    found = scan_folder(tmp_path)
    assert len(found.videos) == 4
    assert found.left_out == {".txt": 2, "": 2, ".jpg": 1}
    (note,) = found.describe()
    assert note.startswith("5 files left out") and "2 without one, 2 .txt, 1 .jpg" in note


def test_class_folders_are_not_read_as_labels(tmp_path):
    touch(tmp_path / "jump" / "raw", "1.mp4")
    assert scan_folder(tmp_path).describe() == []
    touch(tmp_path / "run", "2.mp4", "3.mp4")
    touch(tmp_path / "empty", "list.txt")
    notes = scan_folder(tmp_path).describe()
    assert notes[0].startswith("the names of the 2 subfolders are not read as classes")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_without_permission_are_mentioned(tmp_path):
    touch(tmp_path / "closed", "1.mp4")
    (tmp_path / "closed").chmod(0)
    found = scan_folder(tmp_path)
    (tmp_path / "closed").chmod(0o755)
    assert found.unreadable == [str(tmp_path / "closed")] and "1 folders" in found.describe()[0]
