"""Manifests of good and bad files, exact counts, and resumed runs."""

import csv
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

from configs import common
from invnext_jax.data import manifest, pipeline
from invnext_jax.dataset_prep import indexing, probing, video_flags
from invnext_jax.errors import UserError
from invnext_jax.video_lists import lists

ROOT = Path(__file__).parents[2]


def build(path, out, *, list_options=None, probe=probing.probe_video, **options):
    options = indexing.IndexOptions(**{"workers": 2, "timeout": 20.0, "progress": False, **options})
    return indexing.build_manifest(path, out, list_options, options, probe)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counts(summary):
    return summary.listed, summary.clean, summary.quarantined, summary.duplicates


@pytest.fixture
def folder(world_folder, tmp_path):
    """Five good videos, one of them a copy, one renamed; an empty, a broken, a truncated one."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for i in range(3):
        shutil.copy(world_folder / "train" / f"{i:06d}.mp4", folder / f"{i}.mp4")
    shutil.copy(world_folder / "train" / "000001.mp4", folder / "deep" / "copy.mp4")
    shutil.copy(world_folder / "train" / "000003.mp4", folder / "renamed, really.avi")
    (folder / "empty.mp4").touch()
    (folder / "broken.mkv").write_bytes(b"no video")
    content = (folder / "2.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not listed")
    return folder


def test_good_files_are_listed_and_bad_ones_quarantined(folder):
    (folder / "hang.mp4").write_bytes(b"hang")
    summary = build(folder, folder / "train.csv", probe=probe_or_hang, timeout=3.0)
    assert counts(summary) == (9, 5, 4, 1)
    assert [row["path"] for row in rows(folder / "train.csv")] == [
        *("0.mp4", "1.mp4", "2.mp4", "deep/copy.mp4", "renamed, really.avi")
    ]
    facts = {"source": "videos", "start": "", "end": "", "duration": "1.0", "frames": "8"}
    facts |= {"width": "32", "height": "32", "fps": "8.0", "codec": "h264", "rotation": "0"}
    facts |= {"mirrored": "False", "flags": "", "sar": "1:1", "transfer": ""}
    assert all(row == {"path": row["path"]} | facts for row in rows(folder / "train.csv"))
    bad = {Path(row["path"]).name: row["reason"] for row in rows(folder / "train.quarantine.csv")}
    assert bad.keys() == {"broken.mkv", "empty.mp4", "hang.mp4", "truncated.mp4"}
    assert bad["hang.mp4"] == "a read does not return within 3 seconds"
    assert bad["empty.mp4"] == "empty file"
    (copy,) = rows(folder / "train.duplicates.csv")
    assert copy == {"path": str(folder / "deep/copy.mp4"), "same_as": str(folder / "1.mp4")}
    for text in ("9 listed = 5 clean + 4 quarantined", "train.quarantine.csv", "1 clean files are"):
        assert text in str(summary)


def test_training_and_evaluation_read_the_manifest(folder):
    out = build(folder, folder / "train.csv").manifest
    assert [record.source for record in manifest.read_manifest(out)] == ["videos"] * 5
    config = common.data()
    config.update(manifest=str(out), frames=4, size=32, short_side=32, workers=0)
    dataset = pipeline.make_eval_dataset(config, manifest=str(out), batch_size=5)
    (batch,) = list(dataset)
    assert batch["index"].tolist() == [0, 1, 2, 3, 4] and dataset.bad_videos.dropped == 0
    assert (batch["video"][1] == batch["video"][3]).all()


def test_files_outside_the_folder_keep_absolute_paths(folder, tmp_path):
    build(folder, tmp_path / "lists" / "train.csv")
    assert rows(tmp_path / "lists" / "train.csv")[0]["path"] == str(folder / "0.mp4")
    build(folder, tmp_path / "train.csv")
    assert rows(tmp_path / "train.csv")[0]["path"] == "videos/0.mp4"


def test_duplicate_rows_and_empty_windows_are_quarantined(folder):
    (folder / "list.csv").write_text(
        "path,source,start,end,label_x\n0.mp4,s,,,1\n0.mp4,s,,,1\n0.mp4,s,,,2\n0.mp4,s,0.5,,3\n"
        "0.mp4,s,1.5,2,4\n0.mp4,s,0.5,0.5,4\ngone.mp4,s,,,1\n"
    )
    assert counts(build(folder / "list.csv", folder / "out.csv")) == (7, 2, 5, 0)
    assert [r.labels["label_x"] for r in manifest.read_manifest(folder / "out.csv")] == [1, 3]
    reasons = [row["reason"] for row in rows(folder / "out.quarantine.csv")]
    assert reasons[:3] == [
        *("listed before", "listed before with other labels"),
        "no frame between 1.5 and 2.0 seconds of 1",
    ]
    assert "no frame between 0.5" in reasons[3] and "No such file" in reasons[4]


def test_kinetics_windows_apply_only_to_untrimmed_files(folder):
    (folder / "list.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nb,0,4,14,train\na,deep,1,2,train\n"
        "a,1,0.25,0.75,train\n"
    )
    list_options = lists.ListOptions(task="action")
    # 1.mp4 lasts 1 s, within the tolerance for a window of 0.5 s.
    summary = build(folder / "list.csv", folder / "out.csv", list_options=list_options)
    assert counts(summary) == (3, 2, 1, 0)
    one, two = manifest.read_manifest(folder / "out.csv")
    assert (one.start, one.end, one.labels, one.source) == (
        *(None, None, {"label_action": 1}),
        "kinetics",
    )
    assert two.labels == {"label_action": 0}
    assert json.loads((folder / "out.classes.json").read_text()) == {"a": 0, "b": 1}


def test_untrimmed_video_keeps_its_window(folder, videos):
    videos.write(folder / "whole.mp4", frames=250, options={"preset": "ultrafast"})  # 10 seconds
    text = "label,youtube_id,time_start,time_end\na,whole,2.5,5\n"
    (folder / "list.csv").write_text(text)
    build(folder / "list.csv", folder / "out.csv")
    (record,) = manifest.read_manifest(folder / "out.csv")
    assert (record.start, record.end) == (2.5, 5.0)


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


def test_videos_shorter_than_a_clip_are_counted(folder, videos):
    assert video_flags.CLIP_FRAMES == common.data().frames
    assert video_flags.CLIP_STRIDE == common.data().stride[1]
    for number, frames in enumerate((61, 60)):
        videos.write(folder / f"{number}.mp4", frames=frames, options={"preset": "ultrafast"})
    text = "0.mp4,a,0,1\n0.mp4,a,1,\n0.mp4,a,,\n1.mp4,a,,\n2.mp4,a,,\n"  # 25, 36, 61, 60, 8 frames
    (folder / "list.csv").write_text(f"path,source,start,end\n{text}")
    summary = build(folder / "list.csv", folder / "m.csv")
    dense = [note for note in summary.notes if "dense" in note]
    assert [note.partition(" frames")[0] for note in dense] == ["4 of 5 videos have fewer than 61"]
    (sparse,) = (note for note in summary.notes if "fewer than 16 frames" in note)
    assert sparse.startswith("1 of 5 videos") and sparse.endswith("2.mp4 with 8")


def test_classes_with_similar_names_are_named(folder):
    names = ["Run", "run", "jump high", "jump_high", "walk"]
    videos = ["0", "1", "2", "deep/copy", "0"]
    rows = (f"{video}.mp4,a,{name}\n" for video, name in zip(videos, names, strict=True))
    (folder / "list.csv").write_text("path,source,label\n" + "".join(rows))
    summary = build(folder / "list.csv", folder / "m.csv")
    (note,) = (note for note in summary.notes if "class names" in note)
    assert note.startswith("warning: the class names 'Run' and 'run' are different classes, and 1 ")
    (folder / "list.csv").write_text("path,source,label\n0.mp4,a,run\n1.mp4,a,runs\n")
    summary = build(
        folder / "list.csv",
        folder / "n.csv",
        list_options=lists.ListOptions(classes="alphabetical"),
    )
    assert not any("class names" in note for note in summary.notes)


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


def test_pipes_and_devices_are_not_opened(folder):
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    for _ in range(2):  # the results of the first run are reused
        assert build(folder, folder / "train.csv").quarantined == 5
    bad = {Path(row["path"]).name: row["reason"] for row in rows(folder / "train.quarantine.csv")}
    assert bad["pipe.mp4"] == bad["device.mp4"] == "not a regular file"


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


@pytest.mark.parametrize(
    "name", ["0\udcff.mp4", "a:b.mp4", ' c ,"d" .mp4', "line\nfeed.mp4", "re\rturn.mp4", "#e.mp4"]
)
def test_any_file_name_is_indexed_and_read(folder, name):
    (folder / "0.mp4").rename(folder / name)
    out, copy = folder / "train.csv", folder / "copy.csv"
    assert counts(build(folder, out)) == (8, 5, 3, 1)
    assert counts(build(out, copy)) == (5, 5, 0, 1)
    for path in (out, copy):
        assert str(folder / name) in manifest.read_manifest(path).paths
    config = common.data()
    config.update(manifest=str(out), frames=4, size=32, short_side=32, workers=0)
    dataset = pipeline.make_eval_dataset(config, manifest=str(out), batch_size=5)
    (batch,) = list(dataset)
    assert dataset.bad_videos.dropped == 0 and len(set(batch["index"].tolist())) == 5


def test_bad_file_with_any_name_is_quarantined(folder):
    (folder / "empty.mp4").rename(folder / "\udcff:\n.mp4")
    build(folder, folder / "train.csv")
    text = (folder / "train.quarantine.csv").read_text(errors="surrogateescape")
    assert f'"{folder}/\udcff:\n.mp4",empty file\n' in text


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_splits_indexed_apart_have_the_same_class_numbers(folder):
    (folder / "train.csv").write_text(f"{KINETICS}abseiling,0,,,\narchery,1,,,\nzumba,2,,,\n")
    (folder / "val.csv").write_text(f"{KINETICS}zumba,0,,,\narchery,1,,,\n")
    out, classes = folder / "m", {"abseiling": 0, "archery": 1, "zumba": 2}
    build(folder / "train.csv", out / "train.csv")
    summary = build(folder / "val.csv", out / "val.csv")
    assert f"class ids are those of {out}/train.classes.json" in str(summary)
    found = manifest.read_manifest(out / "val.csv").labels["label_class"].tolist()
    assert found == [classes["zumba"], classes["archery"]]
    for split in ("train", "val"):
        assert json.loads((out / f"{split}.classes.json").read_text()) == classes
        build(folder / f"{split}.csv", out / f"{split}.csv")  # repeating changes nothing
    own = lists.ListOptions(classes="alphabetical")
    build(folder / "val.csv", out / "own.csv", list_options=own)
    assert manifest.read_manifest(out / "own.csv").labels["label_class"].tolist() == [1, 0]
    again = lists.ListOptions(classes=str(out / "train.classes.json"))
    build(out / "own.csv", out / "again.csv", list_options=again)  # with the other numbers
    assert manifest.read_manifest(out / "again.csv").labels["label_class"].tolist() == found


def test_splits_that_would_be_numbered_differently_are_refused(folder):
    (folder / "train.csv").write_text(f"{KINETICS}abseiling,0,,,\narchery,1,,,\nzumba,2,,,\n")
    (folder / "val.csv").write_text(f"{KINETICS}zumba,0,,,\narchery,1,,,\n")
    (folder / "new.csv").write_text(f"{KINETICS}abseiling,0,,,\nbowling,1,,,\n")
    (folder / "other.csv").write_text(f"{KINETICS}walk,0,,,\nrun,1,,,\n")
    build(folder / "val.csv", folder / "m" / "val.csv")
    with pytest.raises(
        UserError, match=r"'archery' has the number 0 in one and 1 in .*--classes=alphabetical"
    ):
        build(folder / "train.csv", folder / "m" / "train.csv")
    build(folder / "other.csv", folder / "m" / "other.csv")  # another data set
    build(folder / "train.csv", folder / "n" / "train.csv")
    with pytest.raises(UserError, match="number 1 is 'archery' in one and 'bowling' in the other"):
        build(folder / "new.csv", folder / "n" / "new.csv")


def test_evaluation_videos_are_excluded_by_content(folder):
    (folder / "val.csv").write_text("path,source\n1.mp4,k400\ngone.mp4,k400\n")
    (folder / "part.csv").write_text("path,source,start,end\n0.mp4,k400,0,0.5\n")
    exclude = (str(folder / "val.csv"), str(folder / "part.csv"))
    summary = build(folder, folder / "train.csv", exclude=exclude)
    assert counts(summary) == (8, 2, 6, 0) and summary.removed == 3
    assert [row["path"] for row in rows(folder / "train.csv")] == ["2.mp4", "renamed, really.avi"]
    reasons = {r["path"]: r["reason"] for r in rows(folder / "train.quarantine.csv")}
    same = f"same content as a video of --exclude: {folder}/1.mp4"
    assert reasons[str(folder / "1.mp4")] == reasons[str(folder / "deep/copy.mp4")] == same
    assert "1 of 3 videos of --exclude cannot be read" in str(summary)
    (folder / "elsewhere.csv").write_text("path,source\ngone.mp4,k400\n")
    with pytest.raises(UserError, match="none of the 1 videos of --exclude=.*elsewhere.csv can be"):
        build(folder, folder / "x.csv", exclude=(str(folder / "elsewhere.csv"),))
    text = "path,source,start,end\n0.mp4,a,0.5,1\n0.mp4,a,0.25,1\n2.mp4,a,,\n"
    (folder / "windows.csv").write_text(text)  # only the second window overlaps with 0 to 0.5
    build(folder / "windows.csv", folder / "out.csv", exclude=exclude)
    assert [row["start"] for row in rows(folder / "out.csv")] == ["0.5", ""]


def test_duplicates_over_several_manifests_are_listed_and_removed(folder, tmp_path):
    (tmp_path / "a.csv").write_text(f"path,source\n{folder}/0.mp4,k400\n{folder}/1.mp4,k400\n")
    (tmp_path / "b.csv").write_text(
        f"path,source\n{folder}/deep/copy.mp4,k700\n{folder}/2.mp4,k700\n"
    )
    both = f"{tmp_path}/a.csv,{tmp_path}/b.csv"
    assert counts(build(both, tmp_path / "all.csv")) == (4, 4, 0, 1)
    (copy,) = rows(tmp_path / "all.duplicates.csv")
    assert copy == {"path": f"{folder}/deep/copy.mp4", "same_as": f"{folder}/1.mp4"}
    summary = build(both, tmp_path / "one.csv", remove_duplicates=True)
    assert counts(summary) == (4, 3, 1, 1) and "1 of the quarantined videos are copies" in str(
        summary
    )
    assert [row["source"] for row in rows(tmp_path / "one.csv")] == ["k400", "k400", "k700"]


def test_reencoded_copies_are_excluded_and_listed_by_their_frames(folder, videos):
    for name, crf in (("numbers.mp4", 18), ("again.mp4", 26)):
        options = {"preset": "ultrafast", "crf": str(crf)}
        videos.write(folder / name, frames=50, size=(96, 160), options=options)
    # The copy has other bytes, so that only its frames are the same.
    assert counts(build(folder, folder / "train.csv")) == (10, 7, 3, 1)
    summary = build(folder, folder / "all.csv", perceptual=True)
    (pair,) = rows(folder / "all.similar.csv")
    assert (pair["path"], pair["similar_to"]) == (f"{folder}/numbers.mp4", f"{folder}/again.mp4")
    assert "1 clean videos look like earlier ones" in str(summary)
    (folder / "val.csv").write_text("path,source\nagain.mp4,k400\n")
    options = {"exclude": (str(folder / "val.csv"),), "perceptual": True}
    assert counts(build(folder, folder / "some.csv", **options)) == (10, 5, 5, 1)
    reasons = {r["path"]: r["reason"] for r in rows(folder / "some.quarantine.csv")}
    reason = reasons[f"{folder}/numbers.mp4"]
    assert reason.startswith("looks like a video of --exclude (") and reason.endswith("again.mp4")


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
            "--workers=-1 and --seconds=60.0 must be above 0",
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
