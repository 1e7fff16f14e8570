"""Resumed, retried and rejected runs that re-encode videos into shards."""

import csv
import hashlib
import json

import av
import fsspec
import pytest

from invnext_jax.data import access_rules, shards, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.dataset_prep import shard_writer, sharding
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.errors import UserError

X264 = {"preset": "ultrafast", "bf": "3", "g": "250"}
ENCODING = Encoding(short_side=48)


def write_in_process(plan, todo, options):
    """Writes shards in sequence; replaces the threads and the Beam pipeline."""
    for number in todo:
        shard_writer.write_shard(plan, number)


def test_retry_encodes_quarantined_rows_again(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    videos.write(tmp_path / "a.mp4", options=X264)
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\nlate.mp4,a\n")

    def prepare(**fields):
        options = sharding.ShardingOptions(progress=False, **fields)
        out = str(tmp_path / "out")
        summary = sharding.prepare_shards(str(tmp_path), out, "train", ENCODING, options)
        return summary.written, summary.quarantined, summary.reused

    assert prepare() == (1, 1, 0)
    (tmp_path / "late.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert prepare() == (1, 1, 2)
    assert prepare(retry=True) == (2, 0, 1)


def test_videos_that_end_at_a_damaged_frame_are_listed_also_after_a_retry(
    tmp_path, videos, monkeypatch
):
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    path = videos.write(tmp_path / "a.mp4", options={**X264, "bf": "0"})
    with av.open(str(path)) as container:
        *_, (at, size) = ((p.pos, p.size) for p in container.demux(video=0) if p.size)
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\xff" * size + data[at + size :])
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\nlate.mp4,a\n")
    out = tmp_path / "out"
    for retry in (False, True):
        options = sharding.ShardingOptions(shards=1, progress=False, retry=retry)
        summary = sharding.prepare_shards(str(tmp_path), str(out), "train", ENCODING, options)
        assert summary.damaged == 1 and "1 of the written videos were cut at a damaged" in str(
            summary
        )
        with (out / "train.damaged.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert row["path"] == str(path) and row["damage"].startswith("kept 59 of 60 frames")
        (tmp_path / "late.mp4").write_bytes(data)
    assert summary.written == 2
    assert len(manifest_lib.read_manifest(out)) == 2


def test_killed_retry_leaves_no_manifest_and_keeps_record_positions(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    for name, frames in (("b.mp4", 9), ("c.mp4", 20)):
        videos.write(tmp_path / name, frames=frames, options=X264)
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\nb.mp4,a\nc.mp4,a\n")
    out = tmp_path / "out"

    def prepare(split="train", **fields):
        options = sharding.ShardingOptions(shards=1, progress=False, **fields)
        return sharding.prepare_shards(str(tmp_path), str(out), split, ENCODING, options)

    def splits():
        info = json.loads((out / "dataset_info.json").read_text())
        return [split["name"] for split in info["splits"]]

    prepare()
    prepare("val")
    old = list(manifest_lib.read_manifest(out / "train"))
    clips = [shards.read_video(row.path, row.record) for row in old]
    videos.write(tmp_path / "a.mp4", options=X264)
    with monkeypatch.context() as killed:
        killed.setattr(sharding, "_write_pending", lambda *_: [][0])
        with pytest.raises(IndexError):
            prepare(retry=True)
    assert not (out / "train.csv").exists() and splits() == ["val"]
    prepare()  # resumes the retry
    assert splits() == ["train", "val"]
    assert [shards.read_video(row.path, row.record) for row in old] == clips
    new = list(manifest_lib.read_manifest(out / "train"))
    assert [row.record for row in new] == [2, 0, 1]
    with (out / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["original"][-5:] for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [row["frames"] for row in rows] == ["60", "9", "20"]
    assert [row["fps"] for row in rows] == ["25.0"] * 3


def test_error_without_good_videos_names_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")
    with pytest.raises(UserError, match="none of 1 videos could be encoded.*No such file"):
        sharding.prepare_shards(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "train.csv").exists()


def test_splits_share_a_folder(world_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    for split in ("train", "val"):
        options = sharding.ShardingOptions(shards=2, progress=False)
        sharding.prepare_shards(
            str(world_folder / "train.csv"), str(tmp_path / "out"), split, None, options
        )
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["train", "val"]
    assert len(manifest_lib.read_manifest(tmp_path / "out" / "val")) == 12


def test_changed_manifest_is_an_error(tmp_path):
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,source\na.mp4,a\n")
    names = (str(manifest),)
    first = shard_writer._load_manifest(names, video_io.hash_files(names))
    manifest.write_text("path,source\nb.mp4,a\n")
    with pytest.raises(UserError, match=r"list\.csv has changed since the command started"):
        shard_writer._load_manifest(names, "0" * 64)
    again = shard_writer._load_manifest(names, video_io.hash_files(names))
    assert [m[0].path[-5:] for m in (first, again)] == ["a.mp4", "b.mp4"]


def test_manifest_may_have_a_comma_in_its_name_or_be_remote(tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="no manifest: set --manifest"):
        sharding.prepare_shards("", out)
    plans = []
    monkeypatch.setattr(sharding, "_lock_folder", lambda plan: plans.append(plan) or [][0])
    text = b"path,source\n/a.mp4,a\n"
    (tmp_path / "a, b.csv").write_bytes(text)
    fsspec.filesystem("memory").pipe("/named/list.csv", text)
    rules = access_rules.AccessRules(protocols=("memory",), other_hosts=True)
    options = sharding.ShardingOptions(access=rules)
    for name in (str(tmp_path / "a, b.csv"), "memory://named/list.csv"):
        with pytest.raises(IndexError):
            sharding.prepare_shards(name, out, options=options)
        assert plans[-1].manifests == (name,) and plans[-1].rows == 1
        assert plans[-1].sha256 == hashlib.sha256(text).hexdigest()


def test_splits_may_lack_labels_and_other_manifests_are_errors(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    videos.write(tmp_path / "a.mp4", frames=9, options=X264)
    out, lists = tmp_path / "out", {}

    def prepare(split, text, **fields):
        lists[split] = tmp_path / f"{split}.csv"
        lists[split].write_text(text)
        options = sharding.ShardingOptions(progress=False, **fields)
        sharding.prepare_shards(str(lists[split]), str(out), split, ENCODING, options)

    one = "path,source,label_b,label_a\na.mp4,x,1,2\n"
    prepare("train", one + "a.mp4,x,3,4\n")
    prepare("val", "path,source,label_a,label_b\na.mp4,x,5,6\n")
    prepare("test", "path,source,label_b\na.mp4,x,7\n")
    (test,) = manifest_lib.read_manifest(out / "test")
    assert test.labels == {"label_a": -1, "label_b": 7}
    assert shards.read_example(test.path, 0)["label_a"] == [-1]
    assert manifest_lib.read_manifest(out / "val")[0].labels == {"label_a": 5, "label_b": 6}
    for shards_given in (0, 2):
        with pytest.raises(
            UserError, match="was made from another manifest, with 2 rows instead of 1"
        ):
            prepare("train", one, shards=shards_given)
    with pytest.raises(UserError, match="splits without the label column 'label_c'") as caught:
        prepare("more", "path,source,label_c\na.mp4,x,7\n")
    assert "delete" not in str(caught.value)


def test_rejected_folder_is_unchanged(tmp_path):
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    for out, message in (("mine", "contains other data"), ("list.csv", "cannot be")):
        with pytest.raises(UserError, match=message):
            sharding.prepare_shards(str(tmp_path / "list.csv"), str(tmp_path / out))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_errors_leave_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_write_pending", lambda *_: [][0])
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")
    with pytest.raises(IndexError):
        sharding.prepare_shards(str(tmp_path), str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"reports", "settings.json"}

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(sharding, "write_text", refuse)
    with pytest.raises(UserError, match="cannot be written: not yours"):
        sharding.prepare_shards(str(tmp_path), str(tmp_path / "other"))
