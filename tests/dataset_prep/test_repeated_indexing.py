"""Repeated and killed runs of the command probe only new files; user errors are one sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import probe_or_hang
from list_cases import build, counts

from invnext_jax.dataset_prep import csv_files
from invnext_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def test_repeated_run_probes_only_changed_files(folder):
    out = folder / "train.csv"
    assert build(folder, out).reused == 0
    content = out.read_text()
    assert build(folder, out).reused == 8 and out.read_text() == content
    shutil.copy(folder / "0.mp4", folder / "empty.mp4")
    with pytest.raises(UserError, match="exists with different content: set --overwrite"):
        build(folder, out)
    assert out.read_text() == content
    assert counts(build(folder, out, overwrite=True)) == (8, 6, 2, 2)


def test_progress_of_a_repeated_run_counts_known_bad_files(folder, capsys):
    build(folder, folder / "train.csv")
    shutil.copy(folder / "0.mp4", folder / "new.mp4")
    build(folder, folder / "train.csv", overwrite=True, progress=True)
    assert "9 of 9 videos, 3 bad files" in capsys.readouterr().out


def test_file_that_could_not_be_read_is_probed_again(folder):
    (folder / "hang.mp4").write_bytes(b"hang")
    summary = build(folder, folder / "train.csv", probe=probe_or_hang, timeout=1.0)
    assert summary.quarantined == 4
    (folder / "hang.mp4").unlink()
    shutil.copy(folder / "0.mp4", folder / "hang.mp4")
    summary = build(folder, folder / "train.csv", timeout=1.0, overwrite=True)
    assert (summary.reused, summary.clean, summary.quarantined) == (8, 6, 3)


def test_incomplete_last_line_of_the_cache_is_ignored(folder):
    build(folder, folder / "train.csv")
    notes = folder / "train.probes.jsonl"
    content = notes.read_bytes()
    notes.write_bytes(content[:-20])
    assert build(folder, folder / "train.csv").reused == 7
    assert sorted(notes.read_bytes().splitlines()) == sorted(content.splitlines())
    notes.write_bytes(b"{}\n" + content)
    with pytest.raises(UserError, match="is damaged: delete it"):
        build(folder, folder / "train.csv")


def test_joined_manifests_are_not_probed_again(folder, tmp_path):
    build(folder, tmp_path / "a.csv")
    build(folder / "deep", tmp_path / "b.csv")
    summary = build(f"{tmp_path}/a.csv,{tmp_path}/b.csv", tmp_path / "all.csv")
    assert (summary.listed, summary.reused) == (6, 5)  # copy.mp4 is listed twice
    with (tmp_path / "a.probes.jsonl").open("a") as file:
        file.write('{"key": ["/x.mp4", 1, 2], "found": {"codec": "h264", "unknown": 1}}\n{"ke')
    summary = build(tmp_path / "a.csv", tmp_path / "one.csv")
    assert summary.reused == 5


def command(*arguments):
    return [sys.executable, ROOT / "launch" / "prepare_data.py", *map(str, arguments)]


CAN_HANG = """
import functools, runpy, sys
from fakes import probe_or_hang
from invnext_jax.dataset_prep import indexing
indexing.build_manifest = functools.partial(indexing.build_manifest, probe=probe_or_hang)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_run_is_resumed(folder):
    # The fourth file: one process waits here until it is killed.
    (folder / "3.mp4").write_bytes(b"hang")
    out, notes = folder / "train.csv", folder / "train.probes.jsonl"
    arguments = ["index", folder, f"--out={out}", "--workers=1", "--seconds=60"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"}
    _, script, *rest = command(*arguments)
    hanging = [sys.executable, "-c", CAN_HANG, str(script), *rest]
    with subprocess.Popen(hanging, env=environment) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if notes.exists() and notes.read_bytes().count(b"\n") == 3:
                break
            time.sleep(0.05)
        with pytest.raises(UserError, match="another run is writing"):
            build(folder, out)
        process.send_signal(signal.SIGKILL)
    assert not out.exists() and notes.read_bytes().count(b"\n") == 3
    (folder / "3.mp4").unlink()
    shutil.copy(folder / "0.mp4", folder / "3.mp4")
    done = subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, check=True
    )
    assert "9 listed = 6 clean + 3 quarantined (3 files probed" in done.stdout
    assert "9 of 9 videos, 3 bad" in done.stdout
    names = [Path(json.loads(line)["key"][0]).name for line in notes.read_text().splitlines()]
    assert len(names) == len(set(names)) == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out=a.csv"], "usage: index FOLDER_OR_LIST --out=manifest.csv"),
        (["crop", "x", "--out=a.csv"], "usage: index FOLDER_OR_LIST --out=manifest.csv"),
        (["index", "x"], "--out is missing"),
        (["index", "nowhere", "--out=a.csv"], "the folder or list 'nowhere' does not exist"),
        (["index", ".", "--out=a.txt"], "--out=a.txt must be a .csv file"),
        (["index", "bad.csv", "--out=bad.csv"], "--out=bad.csv is the list itself"),
        (
            ["index", ".", "--out=a.csv", "--workers=-1"],
            "--workers=-1: -1 is not a non-negative integer",
        ),
        (["index", ".", "--out=a.csv"], "none of 1 videos can be read"),
        (["index", ".", "--out=a.csv", "--feature=x"], "--feature does not apply to lists"),
    ],
)
def test_user_errors_are_one_sentence(arguments, sentence, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.csv").write_text("bad.mp4 1\n")
    done = subprocess.run(
        command(*arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": False},
    )
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "a.csv").exists()


def test_class_names_of_an_earlier_list_do_not_remain(tmp_path):
    out, names = tmp_path / "m.csv", tmp_path / "m.classes.json"
    csv_files.check_class_names(out, {out: "new"})
    names.write_text('{"run": 0}')
    csv_files.check_class_names(out, {out: "new"})  # the names may be meant for the new manifest
    out.write_text("old")
    csv_files.check_class_names(out, {out: "old"})
    csv_files.check_class_names(out, {out: "new", names: '{"jump": 0}'})
    with pytest.raises(UserError, match="m.classes.json has class names of an earlier list, but"):
        csv_files.check_class_names(out, {out: "new"})
