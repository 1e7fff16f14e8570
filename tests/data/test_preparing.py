"""Videos of every kind through Beam into shards and back: the right frames, and no row lost."""

import csv
import hashlib
import json
import struct
import subprocess
import sys
import textwrap

import fsspec
import numpy as np
import pytest
import stand_ins

from invnext_jax.data import decode, opening, preparing, shard_writer, shards, sources
from invnext_jax.data.reencode import Encoding
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


def beam():
    pytest.importorskip("apache_beam", exc_type=ImportError)


def turn(data):
    """The file with the camera turned by a quarter."""
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
    """What Beam made of it with two workers, and the summary."""
    beam()
    out = tmp_path_factory.mktemp("shards") / "out"
    options = preparing.Options(workers=2, shards=4, progress=False)
    summary = preparing.prepare_shards(str(folder), str(out), "train", ENCODING, options)
    return out, summary


def times(source, **window):
    """When each frame is shown."""
    clocks = []
    decode.use_frames(
        source, lambda clock: clocks.append(clock) or [0], lambda f, _: [*f], **window
    )
    return np.array(list(clocks[0]))


def test_every_row_is_written_or_quarantined(folder, prepared):
    out, summary = prepared
    assert (summary.listed, summary.written, summary.quarantined) == (15, 11, 4)
    assert "15 listed = 11 written + 4 quarantined" in str(summary)
    with (out / "train.quarantine.csv").open() as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    names = ["broken.mp4", "missing.mp4", "cut.mp4", "long.mp4"]
    assert list(reasons) == [str(folder / name) for name in names]
    assert "FileNotFoundError" in reasons[str(folder / "missing.mp4")]
    assert "no frame between 5.0 and 6.0" in reasons[str(folder / "long.mp4")]
    rows = list(sources.read_manifest(out))
    assert [row.labels["label_x"] for row in rows] == [*range(9), 20, 24]
    assert [row.source for row in rows] == ["a"] * 9 + ["b"] * 2
    assert {row.start for row in rows} == {row.end for row in rows} == {None}
    with (out / "train.csv").open() as file:
        originals = [row["original"] for row in csv.DictReader(file)]
    kept = [row.path for row in sources.read_manifest(folder) if row.labels["label_x"] < 21]
    assert originals == [*kept, str(folder / "uneven.mp4")]


def test_frames_and_times_are_those_of_the_original(folder, prepared, videos):
    good = {row.labels["label_x"]: row for row in sources.read_manifest(prepared[0])}
    for raw in sources.read_manifest(folder):
        row, window = good.get(raw.labels["label_x"]), {"start": raw.start, "end": raw.end}
        if row is None:
            continue
        data = shards.read_video(row.path, row.record)
        ours = decode.read_frames(data, range)
        theirs = decode.read_frames(raw.path, range, short_side=48, **window)
        height, width = (side // 2 * 2 for side in theirs.shape[1:3])
        assert ours.shape == (len(theirs), height, width, 3), raw.path
        theirs = theirs[:, :height, :width]
        error = np.abs(ours.astype(int) - theirs)
        assert error.mean() < 3, raw.path
        assert abs(ours.mean() - theirs.mean()) < 2.5, raw.path  # a wrong range or matrix is 5
        if "turned" not in raw.path:
            assert videos.numbers(ours) == videos.numbers(theirs), raw.path
        np.testing.assert_allclose(times(data), times(raw.path, **window), atol=2e-5)
        picked = decode.read_frames(data, lambda n: [n - 1, 3, 7])
        np.testing.assert_array_equal(picked, ours[[-1, 3, 7]])


def test_tfds_reads_it_without_tensorflow(prepared):
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


def test_repeating_writes_only_what_is_gone_or_damaged(folder, prepared):
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
    options = preparing.Options(progress=False)
    summary = preparing.prepare_shards(str(folder), str(out), "train", ENCODING, options)
    assert (summary.reused, summary.written, summary.quarantined) == (2, 11, 4)
    for number, file in enumerate(files):
        same = (file.read_bytes(), file.stat().st_mtime_ns) == before[file]
        assert same == (number in (0, 3))
    assert (out / "train.csv").read_text() == manifest
    assert report.exists() and not (out / "parts").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": Encoding(short_side=48, crf=30)}, "begun with crf=21, not 30"),
        ({"options": preparing.Options(shards=5)}, "begun with shards=4, not 5"),
        ({"options": preparing.Options(workers=0)}, "--workers"),
        ({"split": "a b"}, "--split='a b'"),
        ({"manifest": "/no/such.csv"}, r"such\.csv is not there"),
        ({"encoding": Encoding(preset="best")}, "--preset='best'"),
    ],
)
def test_other_settings_are_refused(change, message, folder, prepared):
    fields = {"manifest": str(folder), "split": "train", "encoding": ENCODING}
    fields["options"] = preparing.Options(shards=4)
    with pytest.raises(UserError, match=message):
        preparing.prepare_shards(out=str(prepared[0]), **fields | change)


def test_a_foreign_folder_and_a_second_run_are_refused(folder, prepared, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(UserError, match=r"holds something else \(mine\)"):
        preparing.prepare_shards(str(folder), str(tmp_path))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.csv").write_text((folder / "list.csv").read_text())
    with pytest.raises(UserError, match="folder of the manifest itself"):
        preparing.prepare_shards(str(tmp_path / "copy"), str(tmp_path / "copy"))
    options = preparing.Options(shards=4)
    lock = (prepared[0] / "reports" / "lock").open("w")
    preparing.fcntl.flock(lock, preparing.fcntl.LOCK_EX)
    with lock, pytest.raises(UserError, match="another run is writing"):
        preparing.prepare_shards(str(folder), str(prepared[0]), "train", ENCODING, options)


def test_without_beam_a_sentence_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'invnext-jax\[prepare\]'"):
        preparing.prepare_shards(str(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_child_that_hangs_or_dies_costs_its_row_alone(tmp_path, monkeypatch):
    names = ["a.mp4", "hangs.mp4", "b.mp4", "dies.mp4", "c.mp4"]
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,source\n" + "".join(f"{name},a\n" for name in names))
    monkeypatch.setattr(shard_writer, "Reencode", stand_ins.Encode)
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "reports").mkdir()
    plan = shard_writer.Plan(
        *((str(manifest),), opening.hash_files([manifest.as_posix()])),
        *(str(tmp_path / "out"), "train", 5, 1, (), ENCODING, 1.0),
    )
    shard_writer.write_shard(plan, 0)
    report = shard_writer.read_report(plan, 0)
    assert [row for row, *_ in report.written] == [0, 2, 4]
    assert [(row, reason) for row, _, reason in report.quarantined] == [
        (1, "took longer than the time limit"),
        (3, "the decoder crashed twice"),
    ]
    path = str(plan.shard(0))
    found = [shards.read_video(path, record) for record in range(3)]
    assert found == [str(tmp_path / f"{name}.mp4").encode() for name in "abc"]


def test_retry_tries_quarantined_rows_again(tmp_path, videos, monkeypatch):
    beam()
    monkeypatch.setattr(preparing, "_run", write_here)
    videos.write(tmp_path / "a.mp4", options=X264)
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\nlate.mp4,a\n")

    def prepare(**fields):
        options = preparing.Options(progress=False, **fields)
        out = str(tmp_path / "out")
        summary = preparing.prepare_shards(str(tmp_path), out, "train", ENCODING, options)
        return summary.written, summary.quarantined, summary.reused

    assert prepare() == (1, 1, 0)
    (tmp_path / "late.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert prepare() == (1, 1, 2)
    assert prepare(retry=True) == (2, 0, 1)


def test_a_retry_that_is_killed_leaves_no_manifest_and_no_record_moves(
    tmp_path, videos, monkeypatch
):
    beam()
    monkeypatch.setattr(preparing, "_run", write_here)
    for name, frames in (("b.mp4", 9), ("c.mp4", 20)):
        videos.write(tmp_path / name, frames=frames, options=X264)
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\nb.mp4,a\nc.mp4,a\n")
    out = tmp_path / "out"

    def prepare(split="train", **fields):
        options = preparing.Options(shards=1, progress=False, **fields)
        return preparing.prepare_shards(str(tmp_path), str(out), split, ENCODING, options)

    def splits():
        info = json.loads((out / "dataset_info.json").read_text())
        return [split["name"] for split in info["splits"]]

    prepare()
    prepare("val")
    old = list(sources.read_manifest(out / "train"))
    clips = [shards.read_video(row.path, row.record) for row in old]
    videos.write(tmp_path / "a.mp4", options=X264)
    with monkeypatch.context() as killed:
        killed.setattr(preparing, "_run", lambda *_: [][0])
        with pytest.raises(IndexError):
            prepare(retry=True)
    assert not (out / "train.csv").exists() and splits() == ["val"]
    prepare()  # goes on with it
    assert splits() == ["train", "val"]
    assert [shards.read_video(row.path, row.record) for row in old] == clips
    new = list(sources.read_manifest(out / "train"))
    assert [row.record for row in new] == [2, 0, 1]
    with (out / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["original"][-5:] for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [row["frames"] for row in rows] == ["60", "9", "20"]
    assert [row["fps"] for row in rows] == ["25.0"] * 3


def test_nothing_readable_is_an_error_that_tells_why(tmp_path, monkeypatch):
    beam()
    monkeypatch.setattr(preparing, "_run", write_here)
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")
    with pytest.raises(UserError, match="none of 1 videos could be encoded.*FileNotFound"):
        preparing.prepare_shards(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "train.csv").exists()


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (17, 16), (1000, 7), (5, 5)])
def test_each_row_belongs_to_one_shard(rows, count):
    plan = shard_writer.Plan((), "", "", "train", rows, count, (), ENCODING, 1.0)
    assert [row for number in range(count) for row in plan.span(number)] == [*range(rows)]


def test_splits_share_a_folder(world_folder, tmp_path, monkeypatch):
    beam()
    monkeypatch.setattr(preparing, "_run", write_here)
    for split in ("train", "val"):
        options = preparing.Options(shards=2, progress=False)
        preparing.prepare_shards(
            str(world_folder / "train.csv"), str(tmp_path / "out"), split, None, options
        )
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "val"]
    assert len(sources.read_manifest(tmp_path / "out" / "val")) == 12


def write_here(plan, todo, options):
    """Stands for Beam."""
    for number in todo:
        shard_writer.write_shard(plan, number)


def test_another_manifest_than_that_of_the_plan_is_refused(tmp_path):
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,source\na.mp4,a\n")
    names = (str(manifest),)
    first = shard_writer._read_once(names, opening.hash_files(names))
    manifest.write_text("path,source\nb.mp4,a\n")
    with pytest.raises(UserError, match=r"list\.csv was changed since the command began"):
        shard_writer._read_once(names, "0" * 64)
    again = shard_writer._read_once(names, opening.hash_files(names))
    assert [m[0].path[-5:] for m in (first, again)] == ["a.mp4", "b.mp4"]


def test_manifests_are_named_in_every_way(tmp_path, monkeypatch):
    beam()
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="no manifest named: set --manifest"):
        preparing.prepare_shards("", out)
    plans = []
    monkeypatch.setattr(preparing, "_claim", lambda plan: plans.append(plan) or [][0])
    text = b"path,source\n/a.mp4,a\n"
    (tmp_path / "a, b.csv").write_bytes(text)
    fsspec.filesystem("memory").pipe("/named/list.csv", text)
    for name in (str(tmp_path / "a, b.csv"), "memory://named/list.csv"):
        with pytest.raises(IndexError):
            preparing.prepare_shards(name, out)
        assert plans[-1].manifests == (name,) and plans[-1].rows == 1
        assert plans[-1].sha256 == hashlib.sha256(text).hexdigest()


def test_splits_may_lack_labels_and_another_manifest_is_told_first(tmp_path, videos, monkeypatch):
    beam()
    monkeypatch.setattr(preparing, "_run", write_here)
    videos.write(tmp_path / "a.mp4", frames=9, options=X264)
    out, lists = tmp_path / "out", {}

    def prepare(split, text, **fields):
        lists[split] = tmp_path / f"{split}.csv"
        lists[split].write_text(text)
        options = preparing.Options(progress=False, **fields)
        preparing.prepare_shards(str(lists[split]), str(out), split, ENCODING, options)

    one = "path,source,label_b,label_a\na.mp4,x,1,2\n"
    prepare("train", one + "a.mp4,x,3,4\n")
    prepare("val", "path,source,label_a,label_b\na.mp4,x,5,6\n")
    prepare("test", "path,source,label_b\na.mp4,x,7\n")
    (test,) = sources.read_manifest(out / "test")
    assert test.labels == {"label_a": -1, "label_b": 7}
    assert shards.read_example(test.path, 0)["label_a"] == [-1]
    assert sources.read_manifest(out / "val")[0].labels == {"label_a": 5, "label_b": 6}
    for shards_given in (0, 2):
        with pytest.raises(UserError, match="begun with another manifest, of 2 rows, not 1"):
            prepare("train", one, shards=shards_given)
    with pytest.raises(UserError, match="splits without the label column 'label_c'") as caught:
        prepare("more", "path,source,label_c\na.mp4,x,7\n")
    assert "delete" not in str(caught.value)


def test_a_refused_folder_is_left_as_it_was(tmp_path):
    beam()
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    for out, message in (("mine", "holds something else"), ("list.csv", "cannot be")):
        with pytest.raises(UserError, match=message):
            preparing.prepare_shards(str(tmp_path / "list.csv"), str(tmp_path / out))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_no_parts_stay_after_an_error_and_no_permission_is_one(tmp_path, monkeypatch):
    beam()
    monkeypatch.setattr(preparing, "_run", lambda *_: [][0])
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")
    with pytest.raises(IndexError):
        preparing.prepare_shards(str(tmp_path), str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"reports", "settings.json"}

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(preparing, "write_text", refuse)
    with pytest.raises(UserError, match="cannot be written: not yours"):
        preparing.prepare_shards(str(tmp_path), str(tmp_path / "other"))
