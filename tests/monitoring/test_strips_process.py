"""Clips of checkpoints are drawn by another process, whose failures do not affect the run."""

import contextlib
import sys
import time

import pytest

from invnext_jax.monitoring import strips_process
from invnext_jax.monitoring.strips_process import CheckpointStrips, StripsProcess


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Replaces the module that draws by a script that logs its arguments."""
    script = tmp_path / "draw.py"
    log = tmp_path / "calls.txt"
    start = f"import sys\nopen({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"

    def write(text):
        script.write_text(start + text)
        return log

    popen = strips_process.subprocess.Popen

    def run(command, **options):
        assert command[:4] == [sys.executable, "-P", "-m", "invnext_jax.watching.make_strips"]
        assert options["env"]["JAX_PLATFORMS"] == "cpu"
        return popen([sys.executable, str(script), *command[4:]], **options)

    monkeypatch.setattr(strips_process.subprocess, "Popen", run)
    return write


def test_modules_in_the_current_folder_are_not_imported(tmp_path, monkeypatch):
    for name in ("colorsys", "argparse"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(strips_process, "_MODULE", "colorsys")
    with contextlib.closing(StripsProcess([])) as process:
        process.wait(60)
        assert process.describe_failure() == ""
    assert not (tmp_path / "imported").exists()


def test_each_checkpoint_is_drawn(module, tmp_path):
    log = module("")
    strips = CheckpointStrips(2, "gs://bucket/run", tmp_path)
    strips.start(10)
    strips._wait()
    strips.start(10)
    strips.finish(20)
    folder = tmp_path / "tensorboard/strips"
    assert log.read_text().splitlines() == [
        f"gs://bucket/run --clips=2 --tensorboard={folder} --trusted --wait_for={step}"
        for step in (10, 20)
    ]


def test_a_checkpoint_is_left_out_while_another_one_is_drawn(module, tmp_path):
    log = module("import time; time.sleep(60)")
    strips = CheckpointStrips(2, "run", tmp_path)
    strips.start(10)
    start = time.monotonic()
    while not log.exists() and time.monotonic() < start + 20:
        time.sleep(0.01)
    strips.start(20)
    strips.close()
    assert len(log.read_text().splitlines()) == 1
    assert time.monotonic() < start + 50


def test_no_clips_start_no_process(module, tmp_path):
    log = module("")
    strips = CheckpointStrips(0, "run", tmp_path)
    strips.start(10)
    strips.finish(20)
    strips.close()
    assert not log.exists()


def test_a_failure_is_logged_once(module, tmp_path, caplog):
    module("raise SystemExit('error: the disk is \\x1b[1m full')")
    strips = CheckpointStrips(1, "run", tmp_path)
    strips.finish(10)
    strips.finish(20)
    (message,) = caplog.messages
    assert message.endswith("not in TensorBoard: the disk is \\x1b[1m full")


def test_a_process_that_cannot_start_is_logged(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError("no memory")

    monkeypatch.setattr(strips_process.subprocess, "Popen", fail)
    CheckpointStrips(1, "run", tmp_path).finish(10)
    assert "no memory" in caplog.text


def test_a_slow_process_is_killed(module, tmp_path, monkeypatch):
    module("import time; time.sleep(60)")
    monkeypatch.setattr(strips_process, "_MAX_SECONDS", 0.0)
    process = StripsProcess(["run"])
    time.sleep(0.01)
    assert not process.is_running() and process.describe_failure() == "exit code -9"
    process.close()
    monkeypatch.setattr(strips_process, "_LAST_SECONDS", 0.1)
    CheckpointStrips(1, "run", tmp_path).finish(10)
