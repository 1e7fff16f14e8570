"""Segments in the columns of Waymo are converted to images and boxes for the evaluation."""

import contextlib
import io
import json
import os
import struct

import numpy as np
import pyarrow as pa
import pytest
import truth_layouts
from PIL import Image
from pyarrow import parquet
from truth_layouts import jpeg

from invnext_jax.dataset_prep import waymo
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.box_tracks import BoxTracks
from invnext_jax.evaluation.truth.boxes_jsonl import read_tracks
from invnext_jax.evaluation.truth.track_windows import WindowRules
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec

SPEC = WorldSpec("full", size=64, frames=20, clutter=2)
NAMES = ("segment_a", "segment_b")


@pytest.fixture
def segments(tmp_path):
    for number, name in enumerate(NAMES):
        truth_layouts.write_waymo_segment(tmp_path / "in", name, render_clip(SPEC, number))
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


def test_original_frames_are_copied(segments, tmp_path):
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


def write_tables(folder, name="seg", *, images=None, times=(0, 100_000), box=5.0, ids=("o",)):
    """Writes a segment of two images and one box."""
    image = jpeg(np.zeros((48, 64, 3), np.uint8))
    images = {
        waymo.CAMERA: [1, 1],
        waymo.TIME: list(times),
        waymo.IMAGE: images or [image] * 2,
    }
    boxes = {waymo.CAMERA: [1], waymo.TIME: list(times)[:1], waymo.OBJECT: list(ids)}
    boxes |= {column: pa.array([box]) for column in waymo.BOX}
    for part, table in (("camera_image", images), ("camera_box", boxes)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(table), folder / part / f"{name}.parquet")


@pytest.mark.parametrize(
    "name", ["..", ".", ".x", "\x1b]0;x", "a\nb", "é", "tracks.jsonl", "a.json"]
)
def test_names_of_segments_are_names_of_new_folders(tmp_path, name):
    write_tables(tmp_path / "in", "good")
    write_tables(tmp_path / "in", name)
    found = waymo.convert(tmp_path / "in", tmp_path / "o" / "out", progress=False)
    assert found.segments == 1 and len(found.skipped) == 1 and str(found).count("\n") == 1
    assert "\x1b" not in str(found)
    assert os.listdir(tmp_path / "o") == ["out"]
    assert sorted(os.listdir(tmp_path / "o" / "out")) == ["good", "good.json", "tracks.jsonl"]


def bomb(side):
    """A JPEG image whose header has a large size."""
    data = bytearray(jpeg(np.zeros((8, 8, 3), np.uint8)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"box": None},
        {"box": "x"},
        {"box": [1.0]},
        {"box": float("inf")},
        {"ids": ["o" * 256]},
        {"ids": [bytes(2**20)]},
        {"images": [1, 2]},
        {"images": ["a", "b"]},
        {"images": [jpeg(np.zeros((48, 64, 3), np.uint8)) + bytes(2**17)] * 2},
        {"images": [bomb(65000)] * 2},
        {"images": [bomb(9000)] * 2},
        {"times": (None, 5)},
        {"times": (3, 3)},
        {"times": (0.0, 1e-320)},
        {"times": ("a", "b")},
        {"times": (float("nan"), 1.0)},
    ],
)
def test_segments_with_damaged_values_are_skipped(tmp_path, fields):
    write_tables(tmp_path / "in", **fields)
    with pytest.raises(UserError, match="no segment of .* can be read") as caught:
        waymo.convert(tmp_path / "in", tmp_path / "out", short_side=0, progress=False)
    assert "\n" not in str(caught.value)


@pytest.fixture
def without_worker(monkeypatch):
    """Segments are converted in this process, whose limits can be changed."""
    monkeypatch.setattr(waymo, "_start_worker", contextlib.nullcontext)


@pytest.mark.usefixtures("without_worker")
def test_segments_with_too_many_images_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(waymo, "MAX_IMAGES", 1)
    write_tables(tmp_path / "in")
    with pytest.raises(UserError, match="no segment of .* can be read"):
        waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)


@pytest.mark.usefixtures("without_worker")
def test_segments_with_too_many_boxes_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(waymo, "MAX_LINE_BYTES", 50)
    write_tables(tmp_path / "in")
    with pytest.raises(UserError, match="bytes, more than 50"):
        waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "seg.json").exists()


@pytest.mark.usefixtures("without_worker")
def test_images_that_are_large_when_decompressed_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(waymo, "MAX_BATCH_BYTES", 10**6)
    write_tables(tmp_path / "in", "a", images=[bytes(10**6), bytes(10**6 + 1)])
    write_tables(tmp_path / "in", "b", images=pa.array([bytes(10**6)] * 2).dictionary_encode())
    write_tables(tmp_path / "in", "c")
    paths = [tmp_path / "in" / "camera_image" / f"{name}.parquet" for name in "ab"]
    assert max(path.stat().st_size for path in paths) < 10**5
    found = waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert found.segments == 1
    assert all("have more than 1000000 bytes" in found.skipped[name] for name in "ab")


def forge_histogram(data):
    """A Parquet file with a required column whose statistics are those of an optional one."""
    name = waymo.TIME.encode()
    column = b"\x18" + bytes([len(name)]) + name
    assert data.count(b"%\x02" + column) == 1
    return data.replace(b"%\x02" + column, b"%\x00" + column)


def test_segments_that_end_the_process_that_reads_them_are_skipped(tmp_path):
    """PyArrow does not handle a C++ exception about the statistics of a column."""
    write_tables(tmp_path / "in", "a")
    write_tables(tmp_path / "in", "b")
    path = tmp_path / "in" / "camera_image" / "a.parquet"
    path.write_bytes(forge_histogram(path.read_bytes()))
    found = waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert found.segments == 1
    assert found.skipped == {"a": "reading it ended its process (exit code -6)"}


def test_boxes_with_corners_that_are_not_finite_are_refused(tmp_path):
    write_tables(tmp_path / "in", box=1.5e308)
    with pytest.raises(UserError, match="a box is not finite"):
        waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)


def test_images_with_many_scans_are_skipped(tmp_path):
    content = io.BytesIO()
    Image.new("L", (64, 64)).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    write_tables(tmp_path / "in", "a", images=[data, data[:-2] + 200 * last + data[-2:]])
    write_tables(tmp_path / "in", "b", images=[data] * 2)
    found = waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert found.segments == 1 and "scans, more than 100" in found.skipped["a"]


def test_a_value_that_many_rows_refer_to_is_not_copied_for_each(tmp_path):
    rows, size = 64, 2**24
    table = {waymo.CAMERA: [1] * rows, waymo.IMAGE: [bytes(size)] * rows}
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(table), path, dictionary_pagesize_limit=2 * size)
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert (
            sum(len(row[waymo.IMAGE]) for row in waymo._front(path, [waymo.IMAGE])) == rows * size
        )
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 6 * size


@pytest.mark.parametrize(
    ("limit", "message"),
    [("MAX_ROWS", "2 rows are more than 1"), ("MAX_GROUP_BYTES", "of a row group are more than 1")],
)
@pytest.mark.usefixtures("without_worker")
def test_sizes_in_the_metadata_are_checked_before_rows_are_read(
    limit, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(waymo, limit, 1)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("read"))
    write_tables(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)


@pytest.mark.parametrize("camera", [["a", "b"], [[1], [1]]])
def test_columns_with_nested_or_long_values_are_refused(camera, tmp_path):
    table = {waymo.CAMERA: camera, waymo.TIME: [[1], [2]]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has values of a wrong type"):
        list(waymo._front(tmp_path / "a.parquet", [waymo.TIME]))


def test_named_pipes_and_links_are_skipped(tmp_path):
    for name in ("a", "b", "c"):
        write_tables(tmp_path / "in", name)
    (tmp_path / "in" / "camera_box" / "a.parquet").unlink()
    os.mkfifo(tmp_path / "in" / "camera_box" / "a.parquet")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / "b")
    found = waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert "Not a regular file" in found.skipped["a"] and "symbolic link" in found.skipped["b"]
    assert found.segments == 1 and not os.listdir(tmp_path / "elsewhere")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"junk\n", b"[1]\n", b"[" * 10**5, None])
def test_damaged_results_of_a_segment_are_written_again(tmp_path, content):
    write_tables(tmp_path / "in")
    (tmp_path / "out").mkdir()
    if content is None:
        os.mkfifo(tmp_path / "out" / "seg.json")
    else:
        (tmp_path / "out" / "seg.json").write_bytes(content)
    found = waymo.convert(tmp_path / "in", tmp_path / "out", progress=False)
    assert json.loads(found.tracks.read_text())["video"] == "seg"


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
