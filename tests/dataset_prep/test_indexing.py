"""Manifests of good and bad files, exact counts, and any names of files."""

import os
from pathlib import Path

import pytest
from fakes import probe_or_hang
from list_cases import build, counts, rows

from configs import common
from invnext_jax.data import manifest, pipeline
from invnext_jax.dataset_prep import video_flags


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


def test_videos_smaller_than_a_clip_and_times_in_frames_are_noted(folder, videos):
    assert video_flags.CLIP_SIDE == common.data().size
    videos.write(folder / "0.mp4", frames=50)
    videos.write(folder / "1.mp4", frames=4, size=(224, 256))
    text = "0.mp4,a,0,50\n0.mp4,a,0,2\n1.mp4,a,,\n"  # two seconds
    (folder / "list.csv").write_text(f"path,source,start,end\n{text}")
    summary = build(folder / "list.csv", folder / "m.csv")
    (small,) = (note for note in summary.notes if "enlarged" in note)
    assert small.startswith("2 of 3 videos are less than 224 pixels wide or high")
    (late,) = (note for note in summary.notes if "check that the times are in seconds" in note)
    assert late.startswith("1 of 3 rows end more than 5 s after their video, such as ")
    assert "0.mp4, which ends at 2 s instead of 50 s" in late


def test_pipes_and_devices_are_not_opened(folder):
    os.mkfifo(folder / "pipe.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    for _ in range(2):  # the results of the first run are reused
        assert build(folder, folder / "train.csv").quarantined == 5
    bad = {Path(row["path"]).name: row["reason"] for row in rows(folder / "train.quarantine.csv")}
    assert bad["pipe.mp4"] == bad["device.mp4"] == "not a regular file"


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
