"""Videos in shards: the same clips as from files, and damaged records."""

import builtins
import csv
import dataclasses
import os
import time
from concurrent import futures

import numpy as np
import pytest
from array_record.python import array_record_module
from batches import assert_equal, next_batches
from fakes import FakeLoad
from tensorflow_datasets.proto import tf_example_pb2

from configs import common
from invnext_jax.data import decode, manifest, pipeline, shards
from invnext_jax.data.clips import BadClip, LoadClip


def write_shard(path, videos):
    """Writes a shard of encoded videos, each with a shorter text and a number."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for number, video in enumerate(videos):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["mp4"].bytes_list.value.append(video)
        feature["caption"].bytes_list.value.append(b"a caption")
        feature["row"].int64_list.value.append(number)
        writer.write(example.SerializeToString())
    writer.close()
    return path


@pytest.fixture(scope="module")
def packed(world_folder, tmp_path_factory):
    """The manifest of the world's twelve clips, in two shards of five and seven."""
    folder = tmp_path_factory.mktemp("packed")
    with (world_folder / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number, span in enumerate([range(5), range(5, 12)]):
        videos = [(world_folder / rows[row]["path"]).read_bytes() for row in span]
        write_shard(folder / f"s-{number}", videos)
        for place, row in enumerate(span):
            rows[row] |= {"path": f"s-{number}", "record": place}
    with (folder / "train.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "train.csv"


@pytest.fixture
def config():
    config = common.data()
    config.update(frames=4, size=32, short_side=32, workers=0, prefetch=4)
    return config


@pytest.mark.parametrize(
    ("text", "kind"), [("Input/output error", "unreadable"), ("Invalid chunk header", "corrupt")]
)
def test_errors_of_the_storage_are_told_from_damage(text, kind, packed, monkeypatch):
    class Reader:
        def num_records(self):
            return 9

        def read(self, records):
            raise RuntimeError(f"Unable to read record {records}: {text} at position 8")

    monkeypatch.setattr(shards, "_cached_reader", lambda *_: Reader())
    with pytest.raises(decode.BadVideo, match=text) as caught:
        shards.read_video(str(packed.with_name("s-0")), 3)
    assert caught.value.kind == kind


def test_workers_read_ahead_in_shards(config, packed, world_folder, tmp_path):
    log = tmp_path / "log"
    log.touch()
    config.update(manifest=str(packed), workers=1)
    load = FakeLoad(prefetch_log=str(log))
    batches, _ = next_batches(config, 3, seed=3, load=load)
    rows = manifest.read_manifest(packed)
    loaded = [rows[row].name for batch in batches for row in batch["index"]]
    read = log.read_text().splitlines()
    assert len(read) >= len(loaded) // 2
    # Each video is read while the one before it is loaded; the first read precedes the start.
    order = iter(loaded)
    assert all(name in order for name in read[: len(loaded) // 2])
    config.manifest = str(world_folder / "train.csv")
    log.write_text("")
    next_batches(config, 2, seed=3, load=load)
    assert log.read_text() == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_of_shards_equal_clips_of_files(workers, config, packed, world_folder):
    config.manifest = str(world_folder / "train.csv")
    expected, _ = next_batches(config, 6, seed=3)
    config.update(manifest=str(packed), workers=workers)
    actual, state = next_batches(config, 3, seed=3)
    resumed, _ = next_batches(config, 3, seed=3, state=state)
    assert_equal(actual + resumed, expected)


def test_evaluation_reads_all_records_in_order(config, packed):
    batches = list(pipeline.make_eval_dataset(config, manifest=str(packed), batch_size=5))
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [
        *range(12),
        -1,
        -1,
        -1,
    ]


def bad_clip(record, config):
    made = LoadClip.from_config(config)(record, (None,))
    assert isinstance(made, BadClip) and made.path == record.name in made.reason
    return made.kind


def write_record(path, data):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    writer.write(data)
    writer.close()


def test_a_damaged_record_is_a_bad_video_named_by_shard_and_record(config, packed, tmp_path):
    good = manifest.read_manifest(packed)[6]
    assert good.name.endswith("s-1#1")
    data = bytearray((packed.parent / "s-1").read_bytes())
    (tmp_path / "good").write_bytes(data)
    (tmp_path / "cut").write_bytes(data[: len(data) // 3])
    at = data.index(b"ftyp", data.index(b"ftyp") + 1)
    data[at + 200 : at + 210] = b"\xff" * 10
    (tmp_path / "flipped").write_bytes(data)
    (tmp_path / "text").write_text("no shard" * 10_000)
    (tmp_path / "empty").touch()
    write_shard(tmp_path / "no_video", [b"no video"])
    write_record(tmp_path / "junk", b"\xff\xff\xff")
    write_record(tmp_path / "nothing", b"")
    kinds = {("none", 0): "missing", ("good", 7): "missing", ("nothing", 0): "corrupt"}
    places = [("text", 0), ("empty", 0), ("flipped", 1), ("cut", 1), ("junk", 0), ("no_video", 0)]
    for (name, record), kind in (kinds | dict.fromkeys(places, "corrupt")).items():
        row = dataclasses.replace(good, path=str(tmp_path / name), record=record)
        assert bad_clip(row, config) == kind, name
    row = dataclasses.replace(good, path=str(tmp_path / "flipped"), record=3)
    assert not isinstance(LoadClip.from_config(config)(row, (None,)), BadClip)


# Footers of ArrayRecord with valid hashes. They replace the one at byte 112 of a file that has a
# record of five bytes.
FORGED = {
    "2^40 chunks": bytes.fromhex(
        "0a1f2a43314be0312500000000000000ed75097d77faad9a72020000000000002100000000000000"
        "00021b060a190801108080808080201801220c67726f75705f73697a653a31084010051801"
    ),
    "5 records in 0 chunks": bytes.fromhex(
        "e43629c551ba6808190000000000000001de69d9d796c8a972010000000000001600000000000000"
        "0001160a14080110001805220c67726f75705f73697a653a31"
    ),
}


def forge(path, kind):
    write_record(path, b"hello")
    data, footer = path.read_bytes(), FORGED[kind]
    path.write_bytes(data[:112] + footer + data[112 + len(footer) :])
    return str(path)


def expect_damage(path, record, reason):
    with pytest.raises(decode.BadVideo, match=reason) as caught:
        shards.read_example(path, record)
    assert caught.value.kind == "corrupt"
    with pytest.raises(decode.BadVideo, match=reason):
        list(shards.iterate_records(path))


def test_a_footer_with_too_many_chunks_is_damage(tmp_path):
    path = forge(tmp_path / "shard", "2^40 chunks")
    with pytest.raises(ValueError, match="its footer declares too many chunks"):
        shards.count_records(path)
    expect_damage(path, 0, "its footer declares too many chunks")


def test_records_that_only_the_footer_counts_are_damage(tmp_path):
    path = forge(tmp_path / "shard", "5 records in 0 chunks")
    assert shards.count_records(path) == 5
    expect_damage(path, 4, "the record is empty")


def test_a_shard_whose_name_is_not_utf_8_is_read(tmp_path):
    path = write_shard(tmp_path / "shard", [bytes(99)]).rename(tmp_path / os.fsdecode(b"\xff"))
    assert shards.read_video(str(path), 0) == bytes(99) and shards.count_records(path) == 1


def test_number_of_open_shards_is_limited(packed, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(shards, "_new_reader", lambda path: opened.append(path) or Reader())
    for number in range(shards.MAX_OPEN + 1):
        (tmp_path / str(number)).touch()
    for number in [*range(shards.MAX_OPEN + 1), shards.MAX_OPEN, 0]:
        with pytest.raises(decode.BadVideo, match="0 records"):
            shards.read_video(str(tmp_path / str(number)), 0)
    assert len(opened) == shards.MAX_OPEN + 2  # the first one was closed and is opened again


class Reader:
    def num_records(self):
        return 0


def test_threads_import_the_format_of_records_one_after_the_other(monkeypatch):
    active, most, real = [], [], builtins.__import__

    def count_imports(name, *arguments):
        if name != "tensorflow_datasets.proto":
            return real(name, *arguments)
        active.append(name)
        most.append(len(active))
        time.sleep(0.05)
        active.pop()
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", count_imports)
    with futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(shards._parse, [b""] * 3)) == [{}] * 3
    assert most == [1, 1, 1]
