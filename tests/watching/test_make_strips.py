"""Clips of the newest checkpoint are drawn, and written to TensorBoard."""

import json
import threading

import fake_runs
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from invnext_jax.errors import UserError
from invnext_jax.watching import make_strips


def test_clips_of_a_run_are_written(stage1_run, tmp_path, monkeypatch):
    out, events = tmp_path / "strips.json", tmp_path / "tensorboard/strips"
    flags = ["--clips=1", "--wait_for=0", f"--out={out}", f"--tensorboard={events}"]
    monkeypatch.setattr("sys.argv", ["make_strips", str(stage1_run), *flags])
    monkeypatch.setattr(make_strips.os, "nice", lambda _: None)
    monkeypatch.setattr(make_strips.compilation, "enable_cache", lambda: None)
    make_strips.main()
    found = json.loads(out.read_text())
    (clip,) = found["clips"]
    titles = [strip["title"] for strip in clip["strips"]]
    assert found["step"] == 0 and "Stage 1: mask" in titles and "Features, Stage 1" in titles
    board = EventAccumulator(str(events))
    board.Reload()
    assert board.Tags()["images"] == [f"{title}/clip 0" for title in titles]
    (image,) = board.Images("Stage 1: mask/clip 0")
    assert image.step == 0 and image.width > image.height > 0
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_a_checkpoint_that_is_being_written_is_awaited(tmp_path, monkeypatch):
    fake_runs.write_run(tmp_path)
    fake_runs.write_checkpoint(tmp_path, 4)
    monkeypatch.setattr(make_strips, "_POLL_SECONDS", 0.01)
    make_strips.wait_for_checkpoint(tmp_path, 4)
    timer = threading.Timer(0.2, fake_runs.write_checkpoint, (tmp_path, 8))
    timer.start()
    make_strips.wait_for_checkpoint(tmp_path, 6)
    timer.join()
    monkeypatch.setattr(make_strips, "_WAIT_SECONDS", 0.05)
    with pytest.raises(UserError, match="no checkpoint of step 12"):
        make_strips.wait_for_checkpoint(tmp_path, 12)
