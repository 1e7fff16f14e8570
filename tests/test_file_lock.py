import errno

import pytest

from invnext_jax import file_lock


def test_second_open_file_is_refused_until_the_first_is_released(tmp_path):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        file_lock.acquire(first)
        with pytest.raises(file_lock.LockHeldError, match="lock is locked"):
            file_lock.acquire(second)
        file_lock.release(first)
        file_lock.acquire(second)


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
