"""`frame_check` recognizes files with equal and with different frames."""

import json
import shutil
import sys

import numpy as np
import pytest

from benchmarks import frame_check, frame_files

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
X264 = {"preset": "ultrafast", "g": "12"}


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["frame_check", *map(str, arguments)])
    code = frame_check.main()
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_equal_and_unequal_files_are_counted(tmp_path, videos, monkeypatch, capsys):
    videos.write(tmp_path / "a.mp4", options=X264)
    videos.write(tmp_path / "b.mkv", options=X264)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    assert run(monkeypatch, capsys, tmp_path) == (0, {"files": 3, "equal": 2, "both refuse": 1})
    read = frame_check._read
    monkeypatch.setattr(frame_check, "_read", lambda *a: np.flip(read(*a), 1))
    assert run(monkeypatch, capsys, tmp_path) == (1, {"files": 3, "pixels": 2, "both refuse": 1})
    monkeypatch.setattr(frame_check, "_read", read)
    theirs = frame_check.read_with_ffmpeg
    monkeypatch.setattr(frame_check, "read_with_ffmpeg", lambda *a: (theirs(*a)[0][1:], ""))
    assert run(monkeypatch, capsys, tmp_path) == (1, {"files": 3, "number": 2, "both refuse": 1})


@pytest.mark.slow
def test_frames_of_all_kinds_of_files_equal_those_of_ffmpeg(tmp_path, monkeypatch, capsys):
    code, counts = run(monkeypatch, capsys, "--keep", tmp_path)
    assert code == 0 and counts["equal"] >= 100
    assert len(frame_files.ENCODED) > 60
