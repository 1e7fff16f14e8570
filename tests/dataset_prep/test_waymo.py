"""Segments in Waymo's columns become pictures and boxes that the evaluation reads."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from invnext_jax.dataset_prep import waymo
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.boxes_jsonl import BoxTracks, read_tracks
from invnext_jax.evaluation.truth.track_windows import WindowRules
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec

SPEC = WorldSpec("full", size=64, frames=20, clutter=2)
NAMES = ("segment_a", "segment_b")


def jpeg(image_hwc):
    buffer = io.BytesIO()
    Image.fromarray(image_hwc).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_segment(folder, name, clip):
    """Writes a clip in the columns of Waymo, with frames out of order and a second camera."""
    for part in ("camera_image", "camera_box"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(SPEC.frames).tolist()
    rows = [(t, camera) for t in order for camera in (1, 2)]
    images = {
        waymo.CAMERA: [camera for _, camera in rows],
        waymo.TIME: [10**15 + 100_000 * t for t, _ in rows],
        waymo.PICTURE: [jpeg(clip.video[t] if camera == 1 else 0 * clip.video[t])
                        for t, camera in rows],
    }  # fmt: skip
    parquet.write_table(pa.table(images), folder / "camera_image" / f"{name}.parquet")
    rows = [(t, k) for t, k in np.argwhere(clip.visible > 0).tolist()]
    corners = np.array([clip.boxes[t, k] * SPEC.size for t, k in rows], float)
    center, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    boxes = {
        waymo.CAMERA: [1] * len(rows),
        waymo.TIME: [10**15 + 100_000 * t for t, _ in rows],
        waymo.OBJECT: [f"object {k}" for _, k in rows],
        **{name: column for name, column in zip(waymo.BOX, [*center.T, *size.T], strict=True)},
    }
    parquet.write_table(pa.table(boxes), folder / "camera_box" / f"{name}.parquet")


@pytest.fixture
def segments(tmp_path):
    for number, name in enumerate(NAMES):
        write_segment(tmp_path / "in", name, render_clip(SPEC, number))
    return tmp_path / "in"


def test_windows_of_the_converted_segments_have_the_boxes_of_the_world(segments, tmp_path):
    found = waymo.convert(segments, tmp_path / "out", short_side=32, progress=False)
    assert found.segments == 2 and not found.skipped
    rules = WindowRules(frames=6, min_together=2, min_area=0.0)
    truth = BoxTracks(found.tracks, size=32, rules=rules)
    assert set(truth.videos) == {0, 1}
    video, frames = truth.window(0)
    assert video.name == "segment_a" and np.diff(frames).tolist() == [2] * 5
    clip, row = render_clip(SPEC, 0), truth.load(0)
    small = clip.video[list(frames)].astype(float).reshape(6, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(row["video"] - small).mean() < 8  # compressed as JPEG
    chosen = np.flatnonzero(clip.visible[frames[0]] > 0)
    present = clip.visible[list(frames)][:, chosen] > 0
    expected = clip.boxes[list(frames)][:, chosen] * present[..., None]
    np.testing.assert_allclose(row["boxes"][:, : len(chosen)], expected, atol=1e-3)
    np.testing.assert_array_equal(row["present"][:, : len(chosen)], present)


def test_original_pictures_are_copied(segments, tmp_path):
    waymo.convert(segments, tmp_path / "out", short_side=0, progress=False)
    data = (tmp_path / "out" / "segment_b" / "000007.jpg").read_bytes()
    assert data == jpeg(render_clip(SPEC, 1).video[7])
    tracks = read_tracks(tmp_path / "out" / "tracks.jsonl")[0]
    assert (tracks.fps, tracks.width, tracks.height) == (10, 64, 64)


def test_damaged_segments_are_skipped_and_a_repeat_converts_only_what_is_missing(
    segments, tmp_path
):
    good = (segments / "camera_box" / "segment_b.parquet").read_bytes()
    (segments / "camera_box" / "segment_b.parquet").write_bytes(good[:-20])
    found = waymo.convert(segments, tmp_path / "out", progress=False)
    assert found.segments == 1 and list(found.skipped) == ["segment_b"]
    assert "1 skipped:\n  segment_b: " in str(found)
    before = (tmp_path / "out" / "segment_a.json").stat().st_mtime_ns
    (segments / "camera_box" / "segment_b.parquet").write_bytes(good)
    found = waymo.convert(segments, tmp_path / "out", progress=False)
    assert found.segments == 2 and not found.skipped
    assert (tmp_path / "out" / "segment_a.json").stat().st_mtime_ns == before
    lines = (tmp_path / "out" / "tracks.jsonl").read_text().splitlines()
    assert [json.loads(line)["video"] for line in lines] == list(NAMES)


def test_a_wrong_layout_is_one_sentence(segments, tmp_path):
    with pytest.raises(UserError, match="camera_box"):
        waymo.convert(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="short_side=-1"):
        waymo.convert(segments, tmp_path / "out", short_side=-1)
    for name in NAMES:
        (segments / "camera_image" / f"{name}.parquet").unlink()
    with pytest.raises(UserError, match="no segment of .* can be read") as caught:
        waymo.convert(segments, tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)
