import errno
import os
import signal
import subprocess
import sys

import pytest

from invnext_jax import atomic_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_file.write_text(path, "one ä \udcff\n")
    assert path.read_bytes() == b"one \xc3\xa4 \\udcff\n"
    with atomic_file.atomic_path(path) as part:
        part.write_text("half")
        assert part.parent == path.parent and part.name.startswith(".")
        assert path.read_bytes().startswith(b"one")
    assert path.read_text() == "half" and names(path.parent) == ["a.txt"]


def test_a_failure_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_file.atomic_path(path) as part:
        part.write_text("half")
        raise KeyError
    with pytest.raises(FileNotFoundError), atomic_file.atomic_path(path) as part:
        part.unlink()
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_concurrent_writers_do_not_interfere(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file.atomic_path(path) as one, atomic_file.atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_only_the_files_of_killed_writers_are_removed(tmp_path):
    left = [".a[1].txt.12ab.part", ".a[1].txt.34cd.part"]
    others = [".a1.txt.12ab.part", "a[1].txt", ".a[1].txt.part.md"]
    for name in left + others:
        (tmp_path / name).touch()
    atomic_file.remove_temporary_files(tmp_path / "a[1].txt")
    assert names(tmp_path) == sorted(others)


def test_files_and_folders_of_living_writers_are_not_removed(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file.atomic_path(path) as part, atomic_file.temporary_folder(path) as folder:
        atomic_file.remove_temporary_files(path)
        assert part.exists() and (folder / "lock").exists()
        part.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_files_and_folders_of_a_killed_writer_are_removed(tmp_path):
    path = tmp_path / "a.txt"
    script = f"""
import sys
from invnext_jax import atomic_file
with atomic_file.atomic_path({str(path)!r}), atomic_file.temporary_folder({str(path)!r}):
    print("ready", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        command, **pipes, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as writer:
        assert writer.stdout.readline() == b"ready\n"
        atomic_file.remove_temporary_files(path)
        assert len(names(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    atomic_file.remove_temporary_files(path)
    assert not names(tmp_path)


def test_links_and_files_of_other_users_are_not_removed(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "lock").touch()
    (tmp_path / ".a.12.part").symlink_to(target)
    (tmp_path / ".a.34.part").symlink_to(target / "lock")
    atomic_file.remove_temporary_files(tmp_path / "a")
    assert names(tmp_path) == [".a.12.part", ".a.34.part", "target"] and names(target) == ["lock"]
    (tmp_path / ".a.56.part").touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    atomic_file.remove_temporary_files(tmp_path / "a")
    assert (tmp_path / ".a.56.part").exists()


def test_a_file_removed_before_it_is_locked_is_created_again(tmp_path, monkeypatch):
    lock, tries = atomic_file._lock, []

    def lose_first(file):
        tries.append(file)
        if len(tries) == 1:  # simulates `remove_if_abandoned` in another process
            os.unlink(os.readlink(f"/proc/self/fd/{file}"))
        return lock(file)

    monkeypatch.setattr(atomic_file, "_lock", lose_first)
    atomic_file.write_text(tmp_path / "a.txt", "text")
    assert len(tries) == 2 and (tmp_path / "a.txt").read_text() == "text"


def test_the_file_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls, replace = [], os.replace

    def record(file):
        calls.append(os.readlink(f"/proc/self/fd/{file}"))

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "replace", lambda *a: calls.append("rename") or replace(*a))
    atomic_file.write_text(tmp_path / "a.txt", "text")
    assert calls[0].endswith(".part") and calls[1:] == ["rename", str(tmp_path)]


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(file):
        del file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*part"):
        atomic_file.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_file_system_that_cannot_sync_is_accepted(tmp_path, monkeypatch):
    def fail(file):
        del file
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fail)
    atomic_file.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"
