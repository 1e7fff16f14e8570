import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from invnext_jax import regular_file


def test_content_of_a_regular_file(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert regular_file.read_bytes(tmp_path / "file", 5) == b"12345"
    os.symlink(tmp_path / "file", tmp_path / "link")
    assert regular_file.read_bytes(tmp_path / "link", 5) == b"12345"


def test_tail_of_a_regular_file(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert regular_file.read_tail(tmp_path / "file", 2) == b"45"
    assert regular_file.read_tail(tmp_path / "file", 9) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not a regular file"):
        regular_file.read_tail(tmp_path / "pipe", 9)


def test_what_is_not_a_small_regular_file_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    for name, message in [
        ("file", "Larger than 4 bytes"),
        ("pipe", "Not a regular file"),
        (".", "Not a regular file"),
        ("none", "No such file"),
        ("a\0b", "Invalid file name"),
        ("\ud800", "Invalid file name"),
        ("a" * 5000, "File name too long"),
    ]:
        with pytest.raises(OSError, match=message):
            regular_file.read_bytes(tmp_path / name, 4)
    with pytest.raises(OSError, match="Not a regular file"):
        regular_file.read_bytes("/dev/zero", 4)


def test_the_limit_allocates_no_memory_and_long_files_are_complete(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    tracemalloc.start()
    assert regular_file.read_bytes(tmp_path / "file", 2**40) == content
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(content)


def test_archives_with_too_many_members_are_damage(tmp_path, monkeypatch):
    """An entry of the directory has 46 bytes and a name, and needs more memory than the file."""
    np.savez(tmp_path / "a.npz", **{f"array{number}": np.zeros(1) for number in range(10)})
    with (tmp_path / "a.npz").open("rb") as file:
        regular_file.check_archive_size(file, 10**4)
        assert file.tell() == 0
        monkeypatch.setattr(regular_file, "MAX_DIRECTORY", 10 * 46)
        with pytest.raises(zipfile.BadZipFile, match="its directory has more than 460 bytes"):
            regular_file.check_archive_size(file, 10**4)
