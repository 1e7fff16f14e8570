import json
import os

import numpy as np
import pytest

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import captions
from invnext_jax.evaluation.truth.video_rows import VideoRows
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "videos.csv").write_text("path,source\nv/a.mp4,x\nv/b.mp4,x\nw/c.webm,x\n")
    return manifest_lib.read_manifest(str(tmp_path / "videos.csv"))


def write(tmp_path, entries):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(entries))
    return path


def test_videos_are_found_by_path_name_or_stem(tmp_path, manifest):
    entries = [
        {"video": "w/c.webm", "caption": "a cat"},
        {"video": "a.mp4", "caption": ["a dog runs", "a cat"]},
        {"video": "b", "caption": "rain"},
    ]
    found = captions.read_captions(write(tmp_path, entries), manifest)
    assert found.texts == ["a cat", "a dog runs", "a cat", "rain"]
    np.testing.assert_array_equal(found.row_j, [2, 0, 0, 1])
    assert found.group_j[0] == found.group_j[2] and len(set(found.group_j)) == 3
    assert found.skipped == 0


def test_long_ends_of_paths_are_not_indexed(tmp_path):
    path = "a/" * 1000 + "b.mp4"
    (tmp_path / "videos.csv").write_text(f"path,source\n{path},x\n")
    rows = VideoRows(manifest_lib.read_manifest(str(tmp_path / "videos.csv")))
    assert rows.find(path) == rows.find("a/b.mp4") == rows.find("b") == 0
    assert len(rows._rows) < 140


def test_captions_of_a_video_can_be_joined(tmp_path, manifest):
    entries = [
        {"video": "a", "caption": "First this.", "start": 0},
        {"video": "b", "caption": "Rain."},
        {"video": "v/a.mp4", "caption": ["Then that.", "The end."]},
    ]
    found = captions.read_captions(write(tmp_path, entries), manifest, join=True)
    assert found.texts == ["First this. Then that. The end.", "Rain."]
    assert found.row_j.tolist() == [0, 1]


@pytest.mark.parametrize("field", ["start", "end_time", "timestamps"])
def test_captions_of_segments_are_not_those_of_the_whole_video(field, tmp_path, manifest):
    entries = [{"video": "a", "caption": ["x", "y"], "answer": 0}]
    entries += [{**entries[0], field: time} for time in (None, 3)]
    path = write(tmp_path, entries[:2])
    assert captions.read_captions(path, manifest).skipped == 0
    path = write(tmp_path, entries)
    for read in (captions.read_captions, captions.read_choices):
        with pytest.raises(UserError, match=f"'{field}', which is not read: .*'original_{field}'"):
            read(path, manifest)


def test_videos_in_other_folders_are_other_videos(tmp_path):
    (tmp_path / "videos").mkdir()
    lines = "".join(f"val/{name}.mp4,x\n" for name in "ab") + "../more/test/c.mp4,x\n"
    (tmp_path / "videos" / "flat.csv").write_text("path,source\n" + lines.replace("val/", ""))
    (tmp_path / "videos" / "videos.csv").write_text("path,source\n" + lines)
    rows = VideoRows(manifest_lib.read_manifest(str(tmp_path / "videos" / "videos.csv")))
    for name in ("a", "a.mp4", "val/a", "val/a.mp4", "./val/a.mp4", "/data/val/a.mp4"):
        assert rows.find(name) == 0
    assert rows.find("videos/val/a") == rows.find(f"{tmp_path}/videos/val/a.mp4") == 0
    assert rows.find("../more/test/c.mp4") == rows.find("test/c") == rows.find("more/test/c") == 2
    for name in ("train/a.mp4", "train/a", "/data/train/val2/a.mp4", "d", "a.avi", "train/c.mp4"):
        assert rows.find(name) is None
    rows = VideoRows(manifest_lib.read_manifest(str(tmp_path / "videos" / "flat.csv")))
    assert rows.find("videos/a.mp4") == rows.find("/data/videos/a.mp4") == 0
    assert rows.find("train/a.mp4") is None


def test_ambiguous_names_are_not_guessed(tmp_path):
    (tmp_path / "videos.csv").write_text("path,source\nx/v/a.mp4,x\nx/w/a.mp4,x\n")
    manifest = manifest_lib.read_manifest(str(tmp_path / "videos.csv"))
    videos = ("a", "a.mp4", "x/v/a.mp4", "w/a.mp4")
    entries = [{"video": video, "caption": video} for video in videos]
    found = captions.read_captions(write(tmp_path, entries), manifest)
    assert found.texts == ["x/v/a.mp4", "w/a.mp4"]
    assert found.row_j.tolist() == [0, 1] and found.skipped == 2
    (tmp_path / "videos.csv").write_text("path,source\na.mp4,x\nw/a.mp4,x\na.webm,x\n")
    rows = VideoRows(manifest_lib.read_manifest(str(tmp_path / "videos.csv")))
    assert [rows.find(name) for name in ("a.mp4", "w/a", "a.webm", "a")] == [0, 1, 2, None]


def test_multiple_choice(tmp_path, manifest):
    entries = [
        {"video": "b", "caption": ["x", "y", "z"], "answer": 2},
        {"video": "a", "caption": ["x", "y"], "answer": 2},
        {"video": "a", "caption": ["x", "y"], "answer": "x"},
        {"video": "a", "caption": ["x", "y"], "answer": True},
        {"video": "a", "caption": ["x", "y"], "answer": 0},
    ]
    found = captions.read_choices(write(tmp_path, entries), manifest)
    assert found.row_b.tolist() == [1, 0] and found.answer_b.tolist() == [2, 0]
    assert found.candidates == [["x", "y", "z"], ["x", "y"]] and found.skipped == 3


def test_equal_candidates_are_one_candidate(tmp_path, manifest):
    entries = [
        {"video": "b", "caption": ["z", "x", "y", "x"], "answer": 3},
        {"video": "a", "caption": ["y", "y", "x"], "answer": 2},
    ]
    found = captions.read_choices(write(tmp_path, entries), manifest)
    assert found.candidates == [["z", "x", "y"], ["y", "x"]]
    assert found.answer_b.tolist() == [1, 1]


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"video": "a"},
        {"caption": "a dog"},
        {"video": "unknown", "caption": "a dog"},
        {"video": "a", "caption": ""},
        {"video": "a", "caption": []},
        {"video": "a", "caption": ["fine", None]},
        {"video": "a", "caption": 7},
        {"video": "a", "caption": "a \ud800 dog"},
    ],
)
def test_damaged_entries_are_skipped(tmp_path, manifest, entry):
    good = {"video": "b", "caption": "rain"}
    found = captions.read_captions(write(tmp_path, [entry, good]), manifest)
    assert found.texts == ["rain"] and found.skipped == 1
    with pytest.raises(UserError, match="entry 1") as caught:
        captions.read_captions(write(tmp_path, [entry]), manifest)
    assert "\n" not in str(caught.value)


def test_files_of_another_format_are_one_sentence(tmp_path, manifest):
    path = write(tmp_path, {"a": "a dog"})
    with pytest.raises(UserError, match="JSON list"):
        captions.read_captions(path, manifest)
    path.write_text("[")
    with pytest.raises(UserError, match="damaged"):
        captions.read_captions(path, manifest)
    with pytest.raises(UserError, match="it is empty"):
        captions.read_captions(write(tmp_path, []), manifest)
    with pytest.raises(UserError, match="cannot be read"):
        captions.read_captions(tmp_path / "none.jsonl", manifest)


def test_lines_of_captions_are_read_from_regular_files_and_are_short(
    tmp_path, manifest, monkeypatch
):
    path = tmp_path / "captions.jsonl"
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"cannot be read \(Not a regular file\)"):
        captions.read_captions(path, manifest)
    path.unlink()
    monkeypatch.setattr(captions, "MAX_LINE_BYTES", 50)
    long = json.dumps({"video": "a", "caption": "x" * 40})
    path.write_bytes(long.encode() + b'\n\xff\n{"video": "b", "caption": "rain"}')
    found = captions.read_captions(path, manifest)
    assert found.texts == ["rain"] and found.skipped == 3  # two parts of the long line, and \xff


def test_the_captions_of_a_video_and_of_a_file_are_limited(tmp_path, manifest):
    count = captions.MAX_CAPTIONS_PER_VIDEO
    entries = [
        {"video": "a", "caption": ["x"] * count},
        {"video": "a", "caption": "y"},
        {"video": "b", "caption": ["x"] * (count + 1)},
    ]
    found = captions.read_captions(write(tmp_path, entries), manifest)
    assert found.texts == ["x"] * count and found.skipped == 2
    assert found.row_j.tolist() == [0] * count


def test_files_with_too_many_captions_or_bytes_are_refused(tmp_path, manifest, monkeypatch):
    path = write(tmp_path, [{"video": "a", "caption": ["x", "y"]}, {"video": "b", "caption": "z"}])
    monkeypatch.setattr(captions, "MAX_CAPTIONS", 2)
    with pytest.raises(UserError, match="has more than 2 captions: split the file"):
        captions.read_captions(path, manifest)
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.truncate(captions.MAX_BYTES + 1)  # sparse
    with pytest.raises(UserError, match="Larger than 1073741824 bytes"):
        captions.read_captions(tmp_path / "a.jsonl", manifest)


def test_captions_of_a_written_world_equal_those_of_the_rendered_one(tmp_path):
    spec = WorldSpec("anticipation", split="val")
    written = manifest_lib.read_manifest(write_world(spec, tmp_path, 5, progress=False))
    rendered = manifest_lib.read_manifest("world:anticipation/val?videos=5")
    one = captions.read_captions(tmp_path / "val.captions.jsonl", written)
    other = captions.describe_world(rendered)
    assert one.texts == other.texts == [render_clip(spec, i).video_caption for i in range(5)]
    np.testing.assert_array_equal(one.row_j, other.row_j)
    path = tmp_path / "val.captions.jsonl"
    path.write_text(path.read_text() + "{\n")
    assert captions.read_captions(path, written).skipped == 1
    assert captions.describe_world(written).texts == other.texts


def test_choices_of_a_world_differ_in_one_attribute():
    manifest = manifest_lib.read_manifest("world:simple/val?videos=6")
    spec = WorldSpec(split="val")
    found = captions.make_world_choices(manifest)
    for row, (texts, answer) in enumerate(zip(found.candidates, found.answer_b, strict=True)):
        clip = render_clip(spec, row)
        assert len(set(texts)) == 8 and texts[answer] == clip.video_caption
        assert answer == clip.motion
        start = clip.video_caption.partition("moves")[0]
        assert all(text.startswith(start) for text in texts)
    colors = captions.make_world_choices(manifest, "color")
    assert {len(texts) for texts in colors.candidates} == {6}
    verbs = manifest_lib.read_manifest("world:anticipation/val?videos=2")
    assert captions.make_world_choices(verbs, "verb").skipped == 0
    with pytest.raises(UserError, match="'anticipation' do not mention 'motion'"):
        captions.make_world_choices(verbs)


def test_other_videos_have_no_captions_of_a_world(manifest):
    with pytest.raises(UserError, match="not a world"):
        captions.describe_world(manifest)
    for path in ("/x.mp4", f"/{'b' * 300}/c/a.mp4"):
        assert not captions.is_world_clip(path)
        with pytest.raises(UserError, match="not a world"):
            captions.find_level(path)


def test_captions_of_a_world_need_its_labels(tmp_path):
    write_world(WorldSpec(size=16, frames=2), tmp_path, 1, progress=False)
    (tmp_path / "a.csv").write_text("path,source\ntrain/000000.mp4,w\n")
    found = manifest_lib.read_manifest(str(tmp_path / "a.csv"))
    for describe in (captions.describe_world, captions.make_world_choices):
        with pytest.raises(UserError, match="add the column label_shape to the manifest"):
            describe(found)
