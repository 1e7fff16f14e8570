"""The status of a run: not started, running, stopped, finished or failed."""

import json
import os
import socket
import threading

import fake_runs
import pytest

from invnext_jax import file_lock, sanitize
from invnext_jax.monitoring import metrics_file
from invnext_jax.watching import run_status


def read(workdir):
    records = metrics_file.read_numbers(workdir)
    saved = run_status.read_saved_step(workdir)
    return run_status.read_status(workdir, records, fake_runs.TOTAL_STEPS, saved)


def test_a_folder_that_does_not_exist_is_a_run_that_has_not_started(tmp_path):
    status = read(tmp_path / "later")
    assert status.state == "not started" and "does not exist yet" in status.text


def test_a_locked_workdir_is_a_running_run(tmp_path):
    fake_runs.write_run(tmp_path, steps=())
    with file_lock.open_locked(tmp_path / "run.lock"):
        assert read(tmp_path).text == "no step is logged yet"
        fake_runs.add_records(tmp_path, (1, 10))
        status = read(tmp_path)
    assert (status.state, status.text, status.share) == ("running", "step 10 of 40", 0.25)


def test_a_checkpoint_after_the_last_record_is_the_step_of_the_run(tmp_path):
    fake_runs.write_run(tmp_path, steps=(10,))
    fake_runs.write_checkpoint(tmp_path, 12)
    with file_lock.open_locked(tmp_path / "run.lock"):
        status = read(tmp_path)
    assert (status.text, status.share, status.checkpoint) == ("step 12 of 40", 0.3, 12)


def test_a_silent_run_is_described(tmp_path):
    fake_runs.write_run(tmp_path)
    old = os.stat(tmp_path / "metrics.jsonl").st_mtime - 600
    os.utime(tmp_path / "metrics.jsonl", (old, old))
    with file_lock.open_locked(tmp_path / "run.lock"):
        assert "the last record is 10 minutes old" in read(tmp_path).text


def test_a_run_on_another_host_runs_while_its_records_are_new(tmp_path):
    fake_runs.write_run(tmp_path)
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "node7"}))
    assert read(tmp_path).text == "step 2 of 40 on node7"
    old = os.stat(tmp_path / "metrics.jsonl").st_mtime - 3600
    os.utime(tmp_path / "metrics.jsonl", (old, old))
    assert read(tmp_path).state == "stopped"


def test_a_killed_run_is_stopped_and_says_where_it_continues(tmp_path):
    fake_runs.write_run(tmp_path, steps=(1, 20))
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    assert "continues from step 0" in read(tmp_path).text
    fake_runs.write_checkpoint(tmp_path, 10)
    status = read(tmp_path)
    assert (status.state, status.checkpoint) == ("stopped", 10)
    assert status.text == "after step 20 of 40; the same command continues from step 10"


def test_a_run_with_its_last_checkpoint_is_finished(tmp_path):
    fake_runs.write_run(tmp_path, steps=(40,))
    fake_runs.write_checkpoint(tmp_path, 40)
    status = read(tmp_path)
    assert (status.state, status.text, status.share) == ("finished", "40 steps", 1.0)


def test_an_aborted_run_has_failed(tmp_path):
    fake_runs.write_run(tmp_path, steps=(20,))
    fake_runs.write_checkpoint(tmp_path, 20, aborted="loss was not finite in 21 steps")
    status = read(tmp_path)
    assert (status.state, status.text) == ("failed", "loss was not finite in 21 steps")


@pytest.mark.parametrize("aborted", [["x" * 10**6], {"x": 5}, 7, None])
def test_reasons_of_failures_that_are_not_text_are_ignored(tmp_path, aborted):
    fake_runs.write_run(tmp_path, steps=(20,))
    fake_runs.write_checkpoint(tmp_path, 20, aborted=aborted)
    assert read(tmp_path).state == "stopped"


def test_reasons_of_failures_are_short_and_read_once(tmp_path, monkeypatch):
    fake_runs.write_run(tmp_path, steps=(20,))
    fake_runs.write_checkpoint(tmp_path, 20, aborted="\ud800\x1b" + "x" * 10**6)
    status = read(tmp_path)
    assert status.state == "failed" and status.text.startswith("\\ud800\\x1bxxx")
    assert len(status.text) < sanitize.MAX_REASON + 20 and status.text.encode()
    monkeypatch.setattr(run_status.reader, "read_json", None)  # the page reads the status often
    assert read(tmp_path) == status


def test_a_run_whose_last_loss_is_not_finite_has_failed(tmp_path):
    fake_runs.write_run(tmp_path)
    fake_runs.add_records(tmp_path, (3,), loss=None)
    assert read(tmp_path).text == "the loss of step 3 is not finite"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"host": 3}', "\x00" * 50])
def test_a_damaged_lock_file_is_not_an_error(tmp_path, text):
    fake_runs.write_run(tmp_path)
    (tmp_path / "run.lock").write_text(text)
    assert read(tmp_path).state in ("stopped", "running")


def test_a_run_starts_while_its_lock_is_read(tmp_path):
    """Reading the status takes the lock for a moment, which must not refuse a run that starts."""
    ended = threading.Event()

    def look():
        while not ended.wait(0.0005):
            file_lock.is_held(tmp_path / "run.lock")

    (tmp_path / "run.lock").touch()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            file_lock.release(file_lock.open_locked(tmp_path / "run.lock"))
    finally:
        ended.set()
        thread.join()
