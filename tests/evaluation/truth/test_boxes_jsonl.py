import json
import os
import tracemalloc

import numpy as np
import pytest
import truth_layouts

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import box_tracks, boxes_jsonl
from invnext_jax.evaluation.truth.box_tracks import BoxTracks
from invnext_jax.evaluation.truth.track_windows import WindowRules
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.synthetic_world.render import render_clip

RULES = WindowRules(frames=6, fps=5.0, stride=2, max_objects=4, min_together=2, min_area=0.002)


@pytest.fixture(scope="module")
def tracks_file(tmp_path_factory):
    return truth_layouts.write_boxes(tmp_path_factory.mktemp("boxes"))


@pytest.mark.parametrize("as_folder", [False, True])
def test_boxes_belong_to_the_frames_of_the_window(tmp_path, as_folder):
    path = truth_layouts.write_boxes(tmp_path, as_folder=as_folder)
    truth = BoxTracks(path, size=32, rules=RULES)
    assert len(truth) > 2 and set(truth.videos) == {0, 1}
    for row in range(len(truth)):
        video, frames = truth.window(row)
        assert np.diff(frames).tolist() == [2] * 5  # 10 frames per second become 5
        clip, found = render_clip(truth_layouts.SPEC, int(video.stem)), truth.load(row)
        difference = np.abs(found["video"].astype(float) - clip.video[list(frames)])
        assert difference.max() == 0 if as_folder else difference.mean() < 4
        assert found["boxes"].shape == (6, 4, 4) and found["present"].shape == (6, 4)
        assert not found["boxes"][~found["present"]].any()
        area = np.prod(clip.boxes[..., 2:] - clip.boxes[..., :2], axis=-1)
        present = ((clip.visible > 0) & (area >= RULES.min_area))[list(frames)]
        chosen = np.flatnonzero(present[0])
        np.testing.assert_array_equal(found["present"][:, : len(chosen)], present[:, chosen])
        assert not found["present"][:, len(chosen) :].any()
        expected = clip.boxes[list(frames)][:, chosen] * present[:, chosen, None]
        np.testing.assert_allclose(found["boxes"][:, : len(chosen)], expected, atol=1e-5)


def test_starts_are_apart(tracks_file):
    truth = BoxTracks(tracks_file, size=32, rules=RULES)
    starts = {}
    for row in range(len(truth)):
        video, frames = truth.window(row)
        starts.setdefault(video, []).append(frames[0] // 2)
    assert all(np.diff(found).min() >= 2 for found in starts.values() if len(found) > 1)


@pytest.mark.parametrize(
    ("fps", "wanted", "rate"),
    [(10.0, 5.0, ""), (29.97, 5.0, ""), (24.0, 5.0, "4.8"), (4.0, 5.0, "4"), (7.0, None, "")],
)
def test_windows_with_other_rates_are_described(fps, wanted, rate, tmp_path):
    rules = WindowRules(frames=2, fps=wanted, min_together=1)
    boxes = {"frames": list(range(30)), "boxes": [[0, 0, 50, 50]] * 30}
    line = {"video": "a", "fps": fps, "width": 64, "height": 64, "tracks": {"a": boxes}}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(line))
    truth = BoxTracks(tmp_path / "boxes.jsonl", size=32, rules=rules)
    text = truth.describe_rates()
    assert bool(text) == bool(rate)
    if rate:
        expected = (
            f"{len(truth)} of {len(truth)} windows have {rate} instead of 5 frames per second"
        )
        assert text.startswith(expected)


def test_crop_keeps_only_boxes_inside(tmp_path):
    inside = {"frames": [0, 1], "boxes": [[50, 0, 150, 100], [60, 10, 80, 30]]}
    outside = {"frames": [0, 1], "boxes": [[0, 0, 40, 100], [160, 0, 200, 9]]}
    line = {"video": "folder", "fps": 10, "width": 200, "height": 100}
    line["tracks"] = {"in": inside, "out": outside}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(line))
    rules = WindowRules(frames=2, fps=None, min_together=1)
    truth = BoxTracks(tmp_path / "boxes.jsonl", rules=rules)
    for number in range(2):
        truth_layouts.save(tmp_path / "folder" / f"{number}.png", np.zeros((10, 20, 3), np.uint8))
    found = truth.load(0)
    assert found["boxes"].shape == (2, 25, 4) and found["present"].sum() == 2
    np.testing.assert_allclose(
        found["boxes"][:, 0], [[0, 0, 1, 1], [0.1, 0.1, 0.3, 0.3]], atol=1e-6
    )
    assert found["video"].shape == (2, 224, 224, 3)


GOOD = {"video": "a", "fps": 10, "width": 64, "height": 32, "tracks": {}}
TRACK = {"frames": [0], "boxes": [[0, 0, 1, 1]]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[1]", "must be an object with"),
        (json.dumps({**GOOD, "tracks": []}), "must be an object with"),
        (json.dumps({**GOOD, "fps": None}), "missing or not a number"),
        (json.dumps({**GOOD, "fps": 0}), "fps=0"),
        (json.dumps({**GOOD, "width": 1e9}), "width=1000000000"),
        (json.dumps({**GOOD, "tracks": {"a": {"frames": [0]}}}), "no frames or boxes"),
        (json.dumps({**GOOD, "tracks": {"a": {**TRACK, "frames": [0, 1]}}}), "differ in number"),
        (json.dumps({**GOOD, "tracks": {"a": {**TRACK, "frames": [-1]}}}), "integers from 0"),
        (json.dumps({**GOOD, "tracks": {"a": {**TRACK, "frames": [1e12]}}}), "integers from 0"),
        (json.dumps({**GOOD, "tracks": {"a": {**TRACK, "boxes": [[2, 0, 1, 1]]}}}), "wrong order"),
        ('{"video": "a", "fps": 1, "width": 9, "height": 9, "tracks": '
         '{"a": {"frames": [0], "boxes": [[0, 0, NaN, 1]]}}}', "not finite"),
    ],
)  # fmt: skip
def test_damaged_lines_are_skipped(tmp_path, tracks_file, line, reason):
    path = tmp_path / "tracks.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=f"line 1: .*{reason}") as caught:
        boxes_jsonl.read_tracks(path)
    assert "\n" not in str(caught.value)
    path.write_text(line + "\n" + tracks_file.read_text())
    assert len(boxes_jsonl.read_tracks(path)) == 2


def test_huge_numbers_and_names_are_damaged_lines(tmp_path, tracks_file, monkeypatch):
    monkeypatch.setattr(boxes_jsonl, "MAX_TRACKS", 3)
    path, huge = tmp_path / "tracks.jsonl", 10**400
    for line, reason in [
        ({**GOOD, "fps": huge}, "not a number"),
        ({**GOOD, "tracks": {"a": {**TRACK, "frames": [huge]}}}, "no frames or boxes"),
        ({**GOOD, "tracks": {"a": {**TRACK, "boxes": [[huge, 0, 1, 1]]}}}, "no frames or boxes"),
        (
            {**GOOD, "tracks": {"a": {**TRACK, "boxes": [[0, 0, 1, 1e300]]}}},
            "a coordinate of a box exceeds",
        ),
        ({**GOOD, "video": "a" * 5000}, "too long"),
        ({**GOOD, "video": "a/" * 5000}, "too long"),
        ({**GOOD, "video": "a\0"}, "not a path"),
        ({**GOOD, "video": "\ud800"}, "surrogates"),
        ({**GOOD, "video": ["a"]}, "not a path"),
        ({**GOOD, "tracks": dict.fromkeys("abcd", TRACK)}, "more than 3"),
    ]:
        path.write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=f"line 1: .*{reason}"):
            boxes_jsonl.read_tracks(path)
    path.write_text('{"fps": ' + "9" * 5000 + "}\n" + tracks_file.read_text())
    assert len(boxes_jsonl.read_tracks(path)) == 2


def test_memory_is_that_of_the_boxes(tmp_path):
    track = {"frames": [999_999], "boxes": [[0, 0, 50, 30]]}
    line = {**GOOD, "tracks": {str(number): track for number in range(30)}}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(line))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="no window"):
            BoxTracks(tmp_path / "boxes.jsonl")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_windows_of_long_tracks_are_few_and_small(tmp_path, monkeypatch):
    write_video(tmp_path, "a", frames=4000)
    rules = WindowRules(frames=1000, fps=None, stride=1)
    tracemalloc.start()
    try:
        truth = BoxTracks(tmp_path / "boxes.jsonl", rules=rules)
        assert tracemalloc.get_traced_memory()[1] < 2**23  # the frames of all windows need 100 MB
    finally:
        tracemalloc.stop()
    assert len(truth) == 3001 and list(truth.window(3000)[1]) == list(range(3000, 4000))
    monkeypatch.setattr(box_tracks, "MAX_WINDOWS", 3000)
    with pytest.raises(UserError, match="more than 3000 windows: divide the file"):
        BoxTracks(tmp_path / "boxes.jsonl", rules=rules)


def write_video(folder, video, frames=16):
    track = {"frames": list(range(frames)), "boxes": [[0, 0, 64, 32]] * frames}
    line = {**GOOD, "video": video, "tracks": {"a": track}}
    (folder / "boxes.jsonl").write_text(json.dumps(line))


@pytest.mark.parametrize(
    "video",
    [
        "world:simple/train?videos=9#zz",
        "world:simple/train?videos=9&size=100000#1",
        "world:simple/train?videos=9&frames=16#1",
        "a/" * 1900 + "a",
        "pipe",
        "/dev/zero",
    ],
)
def test_videos_that_are_not_files_are_bad_rows(tmp_path, monkeypatch, video):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    write_video(tmp_path, video)
    with pytest.raises(BadTruth):
        BoxTracks("boxes.jsonl", rules=WindowRules(fps=None)).load(0)


def test_files_that_are_not_regular_or_too_large_are_one_sentence(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read .Not a regular file"):
        BoxTracks(tmp_path / "pipe")
    write_video(tmp_path, "a")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="more than 0 videos: div"):
        patch.setattr(boxes_jsonl, "MAX_VIDEOS", 0)
        BoxTracks(tmp_path / "boxes.jsonl")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="more than 15 boxes: div"):
        patch.setattr(boxes_jsonl, "MAX_BOXES", 15)
        BoxTracks(tmp_path / "boxes.jsonl")
    monkeypatch.setattr(boxes_jsonl, "MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match="line 1 of .* has more than 100 bytes"):
        BoxTracks(tmp_path / "boxes.jsonl")
    os.truncate(tmp_path / "boxes.jsonl", boxes_jsonl.MAX_BYTES + 1)
    with pytest.raises(UserError, match="has more than 1073741824 bytes: use fewer videos"):
        BoxTracks(tmp_path / "boxes.jsonl")


def test_missing_and_short_videos_are_bad_rows(tmp_path):
    path = truth_layouts.write_boxes(tmp_path)
    truth = BoxTracks(path, size=32, rules=RULES)
    (tmp_path / "000000.mp4").unlink()
    short = truth_layouts.encode_mp4(np.zeros((4, 32, 32, 3), np.uint8))
    (tmp_path / "000001.mp4").write_bytes(short)
    kinds = set()
    for row in range(len(truth)):
        with pytest.raises(BadTruth) as caught:
            truth.load(row)
        kinds.add(caught.value.kind)
    assert kinds == {"missing", "truncated"}


def test_files_without_windows_are_refused(tmp_path, tracks_file):
    with pytest.raises(UserError, match="no window of .* satisfies the rules"):
        BoxTracks(tracks_file, size=32, rules=WindowRules(frames=50))
    with pytest.raises(UserError, match="cannot be read .No such file"):
        BoxTracks(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="it is empty"):
        BoxTracks(tmp_path / "empty.jsonl")
