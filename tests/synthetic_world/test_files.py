import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from invnext_jax.data import decode
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import files, render
from invnext_jax.synthetic_world import scene as scene_lib
from invnext_jax.synthetic_world.files import encode_mp4, write_world
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.scene import SHAPES, WorldSpec, sample_scene
from invnext_jax.video import demux

COMMAND = Path(__file__).parents[2] / "launch" / "make_world.py"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def classify(spec, scene, frame_hwc):
    """Classifies shape and color of a frame by the nearest template at the known position."""
    back_c = np.median(frame_hwc.reshape(-1, 3), axis=0)
    ink_hw = np.abs(frame_hwc.astype(float) - back_c).max(-1)
    scores = []
    for kind in SHAPES:
        template_hw = render._coverage(spec, dataclasses.replace(scene, kinds=(kind,)), 0)[0]
        scores.append(np.corrcoef(template_hw.ravel(), ink_hw.ravel())[0, 1])
    color_c = np.median(frame_hwc[ink_hw > 0.6 * ink_hw.max()], axis=0)
    units = [v / np.linalg.norm(v) for v in (color_c, *scene_lib.RGB)]
    return int(np.argmax(scores)), int(np.argmax([units[0] @ unit for unit in units[1:]]))


def test_compression_keeps_small_shapes_recognisable():
    spec, right, same, errors = WorldSpec(), [], [], []
    for index in range(250):
        clip, scene = render_clip(spec, index), sample_scene(spec, index)
        decoded = decode.read_frames(encode_mp4(clip.video), range)
        assert decoded.shape == clip.video.shape
        raw, coded = (classify(spec, scene, video[0]) for video in (clip.video, decoded))
        right.append(raw == (clip.shape, clip.color))
        same.append(raw == coded)
        errors.append(np.abs(decoded.astype(float) - clip.video).mean())
    assert np.mean(right) >= 0.99
    assert np.mean(same) >= 0.99
    assert np.mean(errors) < 2.0  # gray levels


def test_files_hold_clips_and_ground_truth(world_folder):
    spec = WorldSpec()
    with (world_folder / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    captions = (world_folder / "train.captions.jsonl").read_text().splitlines()
    assert len(rows) == len(captions) == 12
    assert list(rows[0]) == ["path", "source", "label_shape", "label_color", "label_motion"]
    for index, (row, line) in enumerate(zip(rows, captions, strict=True)):
        clip, line = render_clip(spec, index), json.loads(line)
        assert row["path"] == line["video"] == f"train/{index:06d}.mp4"
        assert row["source"] == "world"
        assert [int(row[f"label_{task}"]) for task in spec.classes] == list(clip.labels.values())
        assert line["caption"] == clip.video_caption
        assert [c["text"] for c in line["image_captions"]] == clip.image_captions
        with np.load(world_folder / "gt" / "train" / f"{index:06d}.npz") as truth:
            assert set(truth) == {"depth", "boxes", "visible", "ids"}
            for name in truth:
                np.testing.assert_array_equal(truth[name], getattr(clip, name))
        frames = decode.read_frames(world_folder / row["path"], range)
        assert np.abs(frames.astype(float) - clip.video).mean() < 3


def test_videos_are_h264_at_eight_frames_per_second(world_folder):
    with demux.open_stream(world_folder / "train" / "000000.mp4") as stream:
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 8 and stream.frames == 8


def test_two_workers_write_the_same_files_as_one(world_folder, tmp_path):
    write_world(WorldSpec(), tmp_path, 12, workers=2, progress=False)
    assert contents(tmp_path) == contents(world_folder)


def test_finished_world_is_unchanged_and_a_longer_one_adds_clips(tmp_path, monkeypatch):
    spec = WorldSpec(split="val")
    write_world(spec, tmp_path, 4, progress=False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")}
    write_world(spec, tmp_path, 4, progress=False)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")} == before
    written = []
    write = files._write_clip
    monkeypatch.setattr(files, "_write_clip", lambda *a: (written.append(a[2]), write(*a)))
    write_world(spec, tmp_path, 6, progress=False)
    assert written == [4, 5]
    assert (tmp_path / "val.csv").read_text().count("\n") == 7


def test_a_smaller_number_of_clips_is_an_error(tmp_path):
    spec = WorldSpec(size=16, frames=2)
    manifest = write_world(spec, tmp_path, 4, progress=False)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"train has 4 clips, more than 3: request at least 4, use"):
        write_world(spec, tmp_path, 3, progress=False)
    assert contents(tmp_path) == before
    manifest.unlink()  # the command was interrupted
    with pytest.raises(UserError, match="train has 4 clips, more than 2"):
        write_world(spec, tmp_path, 2, progress=False)
    for path in tmp_path.glob("train/*.mp4"):
        path.unlink()
    manifest.write_bytes(before["train.csv"])
    with pytest.raises(UserError, match="train has 4 clips, more than 3"):
        write_world(spec, tmp_path, 3, progress=False)
    write_world(dataclasses.replace(spec, split="val"), tmp_path, 3, progress=False)


def test_splits_share_a_folder_and_other_worlds_are_errors(tmp_path):
    write_world(WorldSpec(split="val"), tmp_path, 1, progress=False)
    write_world(WorldSpec(split="test"), tmp_path, 1, progress=False)
    for other in ({"seed": 1}, {"size": 48}, {"frames": 4}, {"level": "full"}, {"clutter": 0}):
        with pytest.raises(UserError, match="a different folder"):
            write_world(WorldSpec(split="val", **other), tmp_path, 1, progress=False)
    with pytest.raises(UserError, match="videos=0"):
        write_world(WorldSpec(), tmp_path, 0)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 10**5, None])
def test_a_damaged_leftover_spec_is_one_sentence(tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / "spec.json")
    else:
        (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(UserError, match="spec.json .*: use a different folder") as caught:
        write_world(WorldSpec(), tmp_path, 1, progress=False)
    assert "\n" not in str(caught.value)


def test_a_damaged_leftover_manifest_is_written_again(tmp_path):
    spec = WorldSpec(size=16, frames=2)
    content = write_world(spec, tmp_path, 1, progress=False).read_bytes()
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xff\xfe")
    assert write_world(spec, tmp_path, 1, progress=False).read_bytes() == content
    path.unlink()
    os.mkfifo(path)
    assert write_world(spec, tmp_path, 1, progress=False).read_bytes() == content


@pytest.mark.parametrize("name", ["train", "gt"])
def test_leftover_links_are_not_followed(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        write_world(WorldSpec(size=16, frames=2), tmp_path / "out", 1, progress=False)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_options_of_a_world_are_read_from_its_folder(tmp_path):
    specs = WorldSpec("full", 48, 6, 3, "val"), WorldSpec("anticipation", clutter=2, speed=0.5)
    for number, spec in enumerate(specs):
        folder = tmp_path / str(number)
        manifest = write_world(spec, folder, 1, progress=False)
        assert files.read_spec(folder, spec.split) == spec
    assert manifest.read_text().splitlines()[0] == "path,source,label_verb,label_noun,label_action"
    for content, message in (('{"format": 1, "shape": 3}', "damaged"), ("{}", "another format")):
        (folder / "spec.json").write_text(content)
        with pytest.raises(UserError, match=message):
            files.read_spec(folder, "train")


def test_full_level_has_a_background_label(tmp_path):
    spec = WorldSpec(level="full", size=48, split="val")
    manifest = write_world(spec, tmp_path, 2, progress=False)
    header = manifest.read_text().splitlines()[0]
    assert header == "path,source,label_shape,label_color,label_motion,label_background"


def test_killed_command_is_resumed_by_repeating_it(tmp_path, world_folder):
    command = [sys.executable, COMMAND, f"--out={tmp_path}", "--videos=200", "--workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    videos = tmp_path / "train"
    deadline = time.monotonic() + 60
    while len(list(videos.glob("*.mp4"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "train.csv").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "train.csv: 200 clips" in done.stdout
    assert len(list(videos.glob("*.mp4"))) == 200
    actual, expected = contents(tmp_path), contents(world_folder)
    for name in ("train/000000.mp4", "train/000011.mp4", "gt/train/000007.npz"):
        assert actual[name] == expected[name]
    # No video is truncated.
    for path in sorted(videos.glob("*.mp4"))[:60]:
        assert decode.read_frames(path, range).shape == (8, 32, 32, 3)


def test_command_passes_all_options(tmp_path):
    options = ["--level=full", "--split=val", "--size=24", "--frames=6", "--seed=2"]
    options += ["--object_size=0.5", "--speed=2", "--clutter=3", "--workers=1"]
    options += ["--anticipation_videos=2"]
    command = [sys.executable, COMMAND, f"--out={tmp_path}", "--videos=1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = WorldSpec("full", 24, 6, 2, "val", 0.5, 2.0, 3)
    assert files.read_spec(tmp_path, "val") == expected
    other = tmp_path / "anticipation"
    assert files.read_spec(other, "val") == dataclasses.replace(expected, level="anticipation")
    assert f"{tmp_path}/val.csv: 1 clips\n" in done.stdout
    assert f"{other}/val.csv: 2 clips\n" in done.stdout


def test_command_reports_a_user_error_in_one_line(tmp_path):
    command = [sys.executable, COMMAND, f"--out={tmp_path}", "--videos=3", "--level=hard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown world level 'hard'")
    assert done.stderr.count("\n") == 1
