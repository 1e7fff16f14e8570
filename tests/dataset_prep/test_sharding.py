"""Videos of many formats are written to shards: frames are correct, no row is lost."""

import csv
import fcntl
import json
import struct
import subprocess
import sys
import textwrap

import fakes
import numpy as np
import pytest

from invnext_jax.data import decode, shards, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.dataset_prep import shard_writer, sharding
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.errors import UserError

X264 = {"preset": "ultrafast", "bf": "3", "g": "250"}
UNEVEN = np.cumsum([1 + 4 * (i % 7 == 0) for i in range(60)]).tolist()
GOOD = {
    "long.mp4": {"options": X264},
    "uneven.mp4": {"options": X264, "times": UNEVEN},
    "uneven.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}, "times": UNEVEN},
    "ten_bits.mp4": {"options": X264, "pix_fmt": "yuv420p10le"},
    "odd.mp4": {"options": X264, "size": (47, 79), "pix_fmt": "yuv444p"},
    "stream.ts": {"options": X264},
    "full_range.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "large.mp4": {"options": X264, "size": (96, 160)},
}
ENCODING = Encoding(short_side=48)


def turn(data):
    """Returns the file with a rotation by 90 degrees in its header."""
    one = 0x10000
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    at = data.index(plain, data.index(b"tkhd"))
    return data[:at] + turned + data[at + 36 :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("raw")
    for name, fields in GOOD.items():
        videos.write(folder / name, **fields)
    (folder / "turned.mp4").write_bytes(turn((folder / "long.mp4").read_bytes()))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "cut.mp4").write_bytes((folder / "long.mp4").read_bytes()[:3000])
    rows = [f"{name},a,,,{i}" for i, name in enumerate([*GOOD, "turned.mp4"])]
    rows += ["long.mp4,b,0.99,2.01,20", "broken.mp4,b,,,21", "missing.mp4,b,,,22"]
    rows += ["cut.mp4,b,,,23", "uneven.mp4,b,0.99,2.01,24", "long.mp4,b,5,6,25"]
    text = "path,source,start,end,label_x\n" + "".join(f"{row}\n" for row in rows)
    (folder / "list.csv").write_text(text)
    return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """Output folder and summary of a run with two workers."""
    out = tmp_path_factory.mktemp("shards") / "out"
    options = sharding.ShardingOptions(workers=2, shards=4, progress=False)
    summary = sharding.prepare_shards(str(folder), str(out), "train", ENCODING, options)
    return out, summary


def times(source, **window):
    """Returns the seconds at which each frame is shown."""
    with decode.open_video(source, **window) as video:
        assert [number for number, _ in video.frames([0])] == [0]
        return np.array(list(video.times))


def test_every_row_is_written_or_quarantined(folder, prepared):
    out, summary = prepared
    assert (summary.listed, summary.written, summary.quarantined) == (15, 11, 4)
    assert "15 listed = 11 written + 4 quarantined" in str(summary)
    with (out / "train.quarantine.csv").open() as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    names = ["broken.mp4", "missing.mp4", "cut.mp4", "long.mp4"]
    assert list(reasons) == [str(folder / name) for name in names]
    assert "No such file" in reasons[str(folder / "missing.mp4")]
    assert "no frame between 5.0 and 6.0" in reasons[str(folder / "long.mp4")]
    rows = list(manifest_lib.read_manifest(out))
    assert [row.labels["label_x"] for row in rows] == [*range(9), 20, 24]
    assert [row.source for row in rows] == ["a"] * 9 + ["b"] * 2
    assert {row.start for row in rows} == {row.end for row in rows} == {None}
    with (out / "train.csv").open() as file:
        originals = [row["original"] for row in csv.DictReader(file)]
    kept = [row.path for row in manifest_lib.read_manifest(folder) if row.labels["label_x"] < 21]
    assert originals == [*kept, str(folder / "uneven.mp4")]


def test_frames_and_times_equal_those_of_the_original(folder, prepared, videos):
    good = {row.labels["label_x"]: row for row in manifest_lib.read_manifest(prepared[0])}
    for raw in manifest_lib.read_manifest(folder):
        row, window = good.get(raw.labels["label_x"]), {"start": raw.start, "end": raw.end}
        if row is None:
            continue
        data = shards.read_video(row.path, row.record)
        decoded = decode.read_frames(data, range)
        expected = decode.read_frames(raw.path, range, short_side=48, **window)
        height, width = (side // 2 * 2 for side in expected.shape[1:3])
        assert decoded.shape == (len(expected), height, width, 3), raw.path
        expected = expected[:, :height, :width]
        error = np.abs(decoded.astype(int) - expected)
        assert error.mean() < 3, raw.path
        assert abs(decoded.mean() - expected.mean()) < 2.5, raw.path  # 5 for a wrong matrix
        if "turned" not in raw.path:
            assert videos.numbers(decoded) == videos.numbers(expected), raw.path
        np.testing.assert_allclose(times(data), times(raw.path, **window), atol=2e-5)
        picked = decode.read_frames(data, lambda n: [n - 1, 3, 7])
        np.testing.assert_array_equal(picked, decoded[[-1, 3, 7]])


def test_tfds_reads_shards_without_tensorflow(prepared):
    code = f"""
        import sys
        import tensorflow_datasets as tfds
        source = tfds.builder_from_directory({str(prepared[0])!r}).as_data_source("train")
        assert "tensorflow" not in sys.modules and len(source) == 11
        record = source[9]
        assert record["label_x"] == 20 and record["source"] == b"b" and record["frames"] == 26
        assert record["row"] == 9 and record["original"].endswith(b"long.mp4")
        assert record["video"][4:8] == b"ftyp" and isinstance(record["video"], bytes)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_repeated_run_writes_only_missing_and_damaged_shards(folder, prepared):
    out, _ = prepared
    files = sorted(out.glob("videos-train*"))
    assert len(files) == 4
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    report = out / "reports" / "train-00001-of-00004.json"
    report.unlink()  # killed before it was written
    files[2].write_bytes(files[2].read_bytes()[:-70_000])
    (out / "parts").mkdir()
    (out / "parts" / "videos-train.array_record-00001-of-00004.x").write_bytes(b"half")
    manifest = (out / "train.csv").read_text()
    options = sharding.ShardingOptions(progress=False)
    summary = sharding.prepare_shards(str(folder), str(out), "train", ENCODING, options)
    assert (summary.reused, summary.written, summary.quarantined) == (2, 11, 4)
    for number, file in enumerate(files):
        same = (file.read_bytes(), file.stat().st_mtime_ns) == before[file]
        assert same == (number in (0, 3))
    assert (out / "train.csv").read_text() == manifest
    assert report.exists() and not (out / "parts").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": Encoding(short_side=48, crf=30)}, "made with crf=21, not 30"),
        ({"options": sharding.ShardingOptions(shards=5)}, "made with shards=4, not 5"),
        ({"options": sharding.ShardingOptions(workers=0)}, "--workers"),
        ({"split": "a b"}, "--split='a b'"),
        ({"manifest": "/no/such.csv"}, r"such\.csv does not exist"),
        ({"encoding": Encoding(preset="best")}, "--preset='best'"),
    ],
)
def test_other_settings_are_errors(change, message, folder, prepared):
    fields = {"manifest": str(folder), "split": "train", "encoding": ENCODING}
    fields["options"] = sharding.ShardingOptions(shards=4)
    with pytest.raises(UserError, match=message):
        sharding.prepare_shards(out=str(prepared[0]), **fields | change)


def test_folder_with_other_data_and_second_run_are_errors(folder, prepared, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match=r"contains other data \(mine\)"):
        sharding.prepare_shards(str(folder), str(tmp_path))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.csv").write_text((folder / "list.csv").read_text())
    with pytest.raises(UserError, match="is the folder of the manifest"):
        sharding.prepare_shards(str(tmp_path / "copy"), str(tmp_path / "copy"))
    options = sharding.ShardingOptions(shards=4)
    lock = (prepared[0] / "reports" / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with lock, pytest.raises(UserError, match="another run is writing"):
        sharding.prepare_shards(str(folder), str(prepared[0]), "train", ENCODING, options)


def test_missing_beam_is_an_error_that_names_the_package(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'invnext-jax\[prepare\]'"):
        options = sharding.ShardingOptions(beam=("--runner=DataflowRunner",))
        sharding.prepare_shards(str(folder), str(tmp_path / "out"), options=options)
    assert not (tmp_path / "out").exists()


def test_hang_or_crash_quarantines_only_its_row(tmp_path, monkeypatch):
    names = ["a.mp4", "hangs.mp4", "b.mp4", "dies.mp4", "c.mp4"]
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,source\n" + "".join(f"{name},a\n" for name in names))
    monkeypatch.setattr(shard_writer, "Reencoder", fakes.FakeReencoder)
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "reports").mkdir()
    plan = shard_writer.ShardPlan(
        *((str(manifest),), video_io.hash_files([manifest.as_posix()])),
        *(str(tmp_path / "out"), "train", 5, 1, (), ENCODING, 1.0),
    )
    shard_writer.write_shard(plan, 0)
    report = shard_writer.read_report(plan, 0, shards.count_records)
    assert [row for row, *_ in report.written] == [0, 2, 4]
    assert [(row, reason) for row, _, reason in report.quarantined] == [
        (1, "no result within 1 seconds"),
        (3, "the decoder crashed (exit code 3)"),
    ]
    path = str(plan.shard_path(0))
    records = [shards.read_video(path, record) for record in range(3)]
    assert records == [str(tmp_path / f"{name}.mp4").encode() for name in "abc"]
    good = json.loads(plan.report_path(0).read_text())
    row = good["quarantined"][0]
    for change in (
        {"written": [5], "quarantined": []},
        {"written": 5},
        {"quarantined": [row, ["1", *row[1:]]]},
        {"quarantined": [[*row, 1], good["quarantined"][1]]},
        {"damaged": [1]},
    ):
        plan.report_path(0).write_text(json.dumps(good | change))
        assert shard_writer.read_report(plan, 0, shards.count_records) is None
    plan.report_path(0).write_text("[" * 100_000)
    assert shard_writer.read_report(plan, 0, shards.count_records) is None


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (17, 16), (1000, 7), (5, 5)])
def test_each_row_belongs_to_one_shard(rows, count):
    plan = shard_writer.ShardPlan((), "", "", "train", rows, count, (), ENCODING, 1.0)
    assert [row for number in range(count) for row in plan.shard_rows(number)] == [*range(rows)]
