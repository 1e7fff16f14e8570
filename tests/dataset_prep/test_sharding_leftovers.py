"""Damaged or forged files in the folder of shards of an earlier run."""

import csv
import json
import os

import pytest
from etils import epath

from invnext_jax.data import shards
from invnext_jax.dataset_prep import shard_files, shard_writer, sharding
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.errors import UserError
from invnext_jax.workers.process_worker import WorkerDiedError


def write_in_process(plan, todo, options):
    """Writes shards in sequence; replaces the threads."""
    for number in todo:
        shard_writer.write_shard(plan, number)


@pytest.fixture
def prepare(tmp_path, videos, monkeypatch):
    """Returns a function that writes one video to one shard in the folder out."""
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    videos.write(tmp_path / "a.mp4", frames=5, options={"preset": "ultrafast"})
    (tmp_path / "list.csv").write_text("path,source\na.mp4,a\n")

    def prepare():
        options = sharding.ShardingOptions(shards=1, progress=False)
        arguments = str(tmp_path), str(tmp_path / "out"), "train", Encoding(short_side=48), options
        return sharding.prepare_shards(*arguments)

    return prepare


def test_leftover_reports_that_are_damaged_are_written_again(tmp_path, prepare):
    prepare()
    (path,) = (tmp_path / "out/reports").glob("train-*.json")
    report = json.loads(path.read_text())
    changes = (
        {"written": [[0, "x", 1, 1, 1, 1]]},
        {"written": [], "quarantined": [[0, ["a"], {}]]},
        {"damaged": [[0, 1, 2]]},
        {"other": 1},
    )
    for content in [*(json.dumps(report | change) for change in changes), "[" * 10**5]:
        path.write_text(content)
        assert prepare().written == 1 and json.loads(path.read_text()) == report
    for name in (path, path.with_name(f"{path.name}.damaged")):
        name.unlink()
        os.mkfifo(name)
    assert prepare().written == 1 and json.loads(path.read_text()) == report


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", '{"labels": 3}'),
        ("reports/train.begun.json", '{"shards": "1"}'),
        ("reports/train.begun.json", "[]"),
        ("reports/val.done.json", "{"),
        ("reports/val.done.json", "{}"),
        ("reports/val.done.json", '{"lengths": ["1"], "size": 1}'),
        ("reports/val.done.json", '{"lengths": [1], "size": NaN}'),
        ("reports/[.done.json", '{"lengths": [1], "size": 1}'),
        ("reports/val.done.json", None),
    ],
)
def test_leftover_files_that_are_damaged_are_one_sentence(tmp_path, prepare, name, content):
    prepare()
    path = tmp_path / "out" / name
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    (tmp_path / "out/train.csv").unlink()
    with pytest.raises(UserError, match=r"(begun|done|settings).json") as caught:
        prepare()
    assert "\n" not in str(caught.value)


@pytest.fixture
def write_split(tmp_path, videos, monkeypatch):
    """Returns a function that writes rows of a list to the shards of the folder out."""
    monkeypatch.setattr(sharding, "_write_pending", write_in_process)
    for name in ("a.mp4", "b.mp4"):
        videos.write(tmp_path / name, frames=5, options={"preset": "ultrafast"})

    def write(*rows, **fields):
        (tmp_path / "list.csv").write_text("\n".join(["path,source", *rows]) + "\n")
        options = sharding.ShardingOptions(progress=False, **fields)
        arguments = str(tmp_path), str(tmp_path / "out"), "train", Encoding(short_side=48), options
        return sharding.prepare_shards(*arguments)

    return write


def replace_video(path):
    """Changes one byte at the end of a video; its size stays the same."""
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def test_shards_of_videos_that_were_replaced_since_are_an_error(tmp_path, write_split):
    rows = ("a.mp4,s", "b.mp4,s", "b.mp4,s", "late.mp4,s")
    assert write_split(*rows, shards=2).written == 3
    replace_video(tmp_path / "b.mp4")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for retry in (False, True):
        with pytest.raises(UserError, match=r"video '\S*b\.mp4' changed .* use another --out$"):
            write_split(*rows, shards=2, retry=retry)
    assert all(path.read_bytes() == content for path, content in files.items())
    replace_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4' and 1 more changed"):
        write_split(*rows, shards=2)
    for name in ("a.mp4", "b.mp4"):  # deleted originals are not needed again
        (tmp_path / name).unlink()
    assert write_split(*rows, shards=2).reused == 2


def test_replaced_videos_are_found_when_an_interrupted_command_continues(
    tmp_path, write_split, monkeypatch
):
    rows = ("a.mp4,s", "b.mp4,s")
    with monkeypatch.context() as stopped:
        stopped.setattr(sharding, "_write_pending", lambda plan, *_: write_in_process(plan, [0], 0))
        with pytest.raises(UserError, match="repeat the command"):
            write_split(*rows, shards=2)
    replace_video(tmp_path / "b.mp4")  # not yet encoded
    content = (tmp_path / "a.mp4").read_bytes()
    replace_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4' changed"):
        write_split(*rows, shards=2)
    (tmp_path / "a.mp4").write_bytes(content)
    assert write_split(*rows, shards=2).reused == 1


def test_a_retry_keeps_the_digests_of_kept_records(tmp_path, write_split, videos):
    rows = ("a.mp4,s", "late.mp4,s")
    assert write_split(*rows, shards=1).quarantined == 1
    videos.write(tmp_path / "late.mp4", frames=5, options={"preset": "ultrafast"})
    assert write_split(*rows, shards=1, retry=True).written == 2
    for name in ("a.mp4", "late.mp4"):
        content = (tmp_path / name).read_bytes()
        replace_video(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}' changed"):
            write_split(*rows, shards=1)
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("content", [None, "{", "3", "[1]", '[["0", ""]]', "[[0, 1]]", '[[9, ""]]'])
def test_shards_without_valid_digests_are_kept(tmp_path, write_split, content):
    write_split("a.mp4,s")
    (path,) = (tmp_path / "out/reports").glob("*.digests")
    if content is None:  # written by an earlier version
        path.unlink()
    else:
        path.write_text(content)
    replace_video(tmp_path / "a.mp4")
    assert write_split("a.mp4,s").reused == 1


def test_leftover_links_are_not_followed(tmp_path, prepare):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/reports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a symbolic link"):
        prepare()
    assert not list((tmp_path / "elsewhere").iterdir())


def change_column(example, **values):
    example.features.feature["fps"].Clear()
    for kind, value in values.items():
        getattr(example.features.feature["fps"], kind).value.extend(value)


@pytest.mark.parametrize(
    "values",
    [
        {"float_list": []},
        {"float_list": [float("nan")]},
        {"bytes_list": [b"x", b"y"]},
        {"int64_list": [1]},
        None,
    ],
)
def test_records_of_a_leftover_shard_are_checked(tmp_path, prepare, values):
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    prepare()
    (path,) = (tmp_path / "out").glob("*array_record-*")
    ((_, data),) = shards.iterate_records(path)
    example = tf_example_pb2.Example.FromString(data)
    path.unlink()
    if values is None:
        os.mkfifo(path)
    else:
        change_column(example, **values)
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        writer.write(example.SerializeToString())
        writer.close()
    for report in (tmp_path / "out/reports").glob("train-*.json"):
        report.unlink()
    assert prepare().written == 1
    with (tmp_path / "out/train.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["fps"]) == (1 if values == {"int64_list": [1]} else 25)


class Killed:
    """A worker that dies in each call."""

    def __init__(self, *_):
        pass

    def __call__(self, *_):
        raise WorkerDiedError("exit code -9")

    def close(self):
        pass


@pytest.mark.parametrize("function", [shards.DigestRecord, shard_files.CountRecords])
def test_shards_that_end_a_worker_are_written_again(function, tmp_path, prepare, monkeypatch):
    prepare()
    start = shards.SupervisedWorker
    (shard,) = (tmp_path / "out").glob("*.array_record-*")
    if function is shards.DigestRecord:  # otherwise, the records are not read
        for report in (tmp_path / "out/reports").glob("train-*.json"):
            report.unlink()
    before = shard.stat().st_ino

    def start_worker(make_worker, seconds):
        dies = isinstance(make_worker.args[0], function) and shard.stat().st_ino == before
        return Killed() if dies else start(make_worker, seconds)

    def fail_if_opened(path):
        pytest.fail(f"{path} was opened in this process")

    monkeypatch.setattr(shards, "SupervisedWorker", start_worker)
    monkeypatch.setattr(shards, "_new_reader", fail_if_opened)
    assert prepare().written == 1
    monkeypatch.undo()
    assert shard.stat().st_ino != before and shards.count_records(shard) == 1


def test_large_json_files_of_remote_folders_are_not_read(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "report.json")
    path.write_text("[1, 2, 3]")
    monkeypatch.setattr(shard_files.video_io, "is_remote", lambda _: True)
    assert shard_files.read_json(path) == [1, 2, 3]
    monkeypatch.setattr(shard_files, "MAX_BYTES", 8)
    with pytest.raises(UserError, match="9 bytes are more than 8"):
        shard_files.read_json(path)
