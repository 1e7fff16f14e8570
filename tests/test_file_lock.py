import errno
import os

import pytest

from invnext_jax import file_lock
from invnext_jax.checkpointing import workdir
from invnext_jax.data.bad_videos import QUARANTINE, BadVideoTracker
from invnext_jax.dataset_prep import probe_cache
from invnext_jax.errors import UserError
from invnext_jax.monitoring import metrics_file


def test_second_open_file_is_refused_until_the_first_is_released(tmp_path):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        file_lock.acquire(first)
        with pytest.raises(file_lock.LockHeldError, match="lock is locked"):
            file_lock.acquire(second)
        file_lock.release(first)
        file_lock.acquire(second)


def test_locked_file_describes_its_process(tmp_path):
    path = tmp_path / "lock"
    assert not file_lock.is_held(path)
    with file_lock.open_locked(path):
        assert file_lock.is_held(path)
        with pytest.raises(file_lock.LockHeldError, match=f'"pid": {os.getpid()}'):
            file_lock.open_locked(path)
    assert not file_lock.is_held(path)
    with file_lock.open_locked(path):
        assert len(path.read_text().splitlines()) == 1  # the earlier description is replaced


@pytest.mark.parametrize(
    "text", ["[" * 4096, '{"host": "a\\ud800"}', '{"host": "\\u001b[31m"}', '{"host": []}', "\xff"]
)
def test_the_host_in_a_forged_lock_file_is_unknown(text, tmp_path):
    path = tmp_path / "lock"
    path.write_text(text)
    assert file_lock.read_host(path) == ""


def test_a_held_lock_file_of_any_content_is_described(tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(b"\xff")
    os.truncate(path, 2**40)
    with open(path, "rb") as file:
        file_lock.acquire(file)
        with pytest.raises(file_lock.LockHeldError):
            file_lock.open_locked(path)


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with open(tmp_path / "lock", "w") as file:
        file_lock.acquire(file)
    assert any("does not support locks" in text for text in caplog.messages)


def test_other_errors_are_raised(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", refuse)
    with open(tmp_path / "lock", "w") as file, pytest.raises(OSError, match="Input/output"):
        file_lock.acquire(file)


def test_symbolic_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep\n")
    (tmp_path / "link").symlink_to(victim)
    for mode in ("a+", "w", "r+b"):
        with pytest.raises(OSError, match="symbolic link"):
            file_lock.open_file(tmp_path / "link", mode)
    assert victim.read_text() == "keep\n"
    with file_lock.open_file(tmp_path / "new", "a") as file:
        file.write("text")
    assert (tmp_path / "new").read_text() == "text"


def test_named_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for mode in ("a+", "ab", "r"):
        with pytest.raises(OSError, match="not a regular file|No such device"):
            file_lock.open_file(tmp_path / "pipe", mode)
    assert not file_lock.is_held(tmp_path / "pipe")


def open_lock(folder):
    workdir.Workdir(folder).close()


def open_quarantine(folder):
    BadVideoTracker().write_quarantine(folder)


def open_probe_cache(folder):
    probe_cache.ProbeCache(folder / "probes.jsonl")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        (workdir.LOCK, open_lock),
        (QUARANTINE, open_quarantine),
        ("probes.jsonl", open_probe_cache),
    ],
)
def test_files_of_a_folder_are_not_written_through_links(name, use, tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("keep\n")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    with pytest.raises(UserError, match="symbolic link"):
        use(folder)
    assert victim.read_text() == "keep\n"


def test_metrics_are_not_written_through_links(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text('{"step": 1}\n')
    folder.mkdir()
    (folder / metrics_file.FILE).symlink_to(victim)
    writer = metrics_file.MetricWriter(folder, 1)  # no record has to be removed
    writer.write({"step": 2, "loss": 1.0})
    writer.close()
    assert victim.read_text() == '{"step": 1}\n'
