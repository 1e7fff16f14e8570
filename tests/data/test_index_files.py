"""Cached frame indexes give the same frames, scan each file version once and use little memory."""

import base64
import json
import math
import os
import zlib

import numpy as np
import pytest

from configs import common
from invnext_jax.data import clips, decode, index_files, manifest, pipeline, video_io
from invnext_jax.dataset_prep import indexing
from invnext_jax.video import demux, frame_index
from invnext_jax.video.frame_index import PacketIndex

X264 = {"preset": "ultrafast", "g": "12", "bf": "2"}


@pytest.fixture
def cache(monkeypatch):
    """An empty cache for the process."""
    cache = video_io.IndexCache()
    monkeypatch.setattr(video_io, "CACHE", cache)
    return cache


@pytest.fixture
def scans(monkeypatch):
    """Records the names of the files that are scanned."""
    names, build = [], frame_index.build_index

    def record(source, stream):
        names.append(source.name)
        return build(source, stream)

    monkeypatch.setattr(frame_index, "build_index", record)
    return names


def make_index(count, *, missing=False):
    times = (None,) * count if missing else tuple(range(100, 100 + 512 * count, 512))
    return PacketIndex(times, times[::12] if not missing else (), 2, is_decoded=missing)


def read(path, **window):
    sampler = clips.ClipSampler(clips.ClipTransform(), 4, 48, [None])
    record = manifest.VideoRecord(0, str(path), "", window.get("start"), window.get("end"), {})
    return clips.read_clips(record, sampler, 48)


def test_a_file_is_scanned_once_for_many_clips(cache, scans, videos, tmp_path):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    windows = [{}, {"start": 1.0, "end": 2.0}, {"start": 0.5}, {"end": 0.2}]
    for window in windows:
        expected = decode.read_frames(
            path, lambda n: clips.sample_sparse(n, 4, None), short_side=48, **window
        )
        found = read(path, **window)
        assert videos.numbers(found[0]) == videos.numbers(expected[:, :, 16:64])
    assert scans.count(str(path)) == 1


def test_a_changed_file_is_scanned_again(cache, scans, videos, tmp_path):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    read(path)
    changed = videos.write(tmp_path / "b.mp4", options=X264, frames=50)
    os.replace(changed, path)
    with video_io.open_video(str(path)) as video:
        assert len(video) == 50
    assert len(scans) == 2


def test_memory_is_bounded_and_the_last_used_indexes_are_kept():
    cache, version = video_io.IndexCache(max_frames=100), (1, 2)
    for name in "abc":
        cache.put(name, version, make_index(40))
        assert cache.get("a", version) is not None
    assert cache.get("b", version) is None and cache.get("c", version) is not None
    assert cache.get("c", (1, 3)) is None
    cache.put("long", version, make_index(1000))
    assert cache.get("long", version) is not None and cache.get("a", version) is None


@pytest.mark.parametrize("missing", [False, True])
def test_stored_indexes_are_equal_and_of_one_version(missing):
    index = make_index(30, missing=missing)
    text = index_files.encode_index(index, (5, 7))
    assert index_files.decode_index(text, (5, 7)) == index
    assert index_files.decode_index(text, (5, 8)) is None
    for damaged in (text[:-8], "", "%", "AAAA"):
        assert index_files.decode_index(damaged, (5, 7)) is None


def test_stored_indexes_with_other_values_are_ignored():
    def decode(*fields):
        data = zlib.compress(json.dumps([5, 7, *fields]).encode())
        return index_files.decode_index(base64.b64encode(data).decode(), (5, 7))

    assert decode([0, 40], [0], 0, False) == PacketIndex((0, 40), (0,), 0, False)
    for bad in ([1], "1", 0.5, math.nan, math.inf, None, True, 2**80):
        assert decode([0, bad], [0], 0, False) is None
        assert decode([0, 40], [bad], 0, False) is None
        assert decode([0, 40], [0], bad, False) is None
    assert decode([None, {}], [], 0, True) is None and decode([], [], 0, True) is None
    assert decode([None, None], [0], 0, True) is None
    for step in (0, -1):  # the times of frames and key frames are in ascending order
        assert decode([0, step], [0], 0, False) is None
        assert decode([0, 40], [0, step], 0, False) is None
    assert decode([0, 0], [], 0, True) == PacketIndex((0, 0), (), 0, True)
    too_long = json.dumps([5, 7, [0, 40], [0], 0, " " * index_files.MAX_JSON_BYTES]).encode()
    text = base64.b64encode(zlib.compress(too_long)).decode()
    assert index_files.decode_index(text, (5, 7)) is None
    assert decode(*[[] for _ in range(3)], 0) is None


def test_files_of_stored_indexes_may_have_any_content(tmp_path):
    path = tmp_path / "m.frames.jsonl"
    for content in ("[" * 100_000, "5", '{"path": 5, "index": "x"}', "\0", '{"a":' + "1" * 5000):
        path.write_text(content)
        video_io.IndexCache().load([str(path)])
    os.mkfifo(tmp_path / "pipe")
    video_io.IndexCache().load([str(tmp_path / "pipe")])


def test_indexes_that_are_not_text_are_not_kept(tmp_path, caplog):
    path, good = tmp_path / "m.frames.jsonl", index_files.format_lines([("a", "x")])
    path.write_text(good + '{"path": "b", "index": [[], []]}\n')
    assert index_files.read_stored(str(path)) == {str(tmp_path / "a"): "x"}
    assert "m.frames.jsonl are not used: the index of 'b' is not text" in caplog.text


def test_large_files_and_long_lines_of_stored_indexes_are_skipped(tmp_path, monkeypatch, caplog):
    path, good = tmp_path / "m.frames.jsonl", index_files.format_lines([("a", "x")])
    path.write_text(good + '{"path": "' + "b" * index_files.MAX_LINE_BYTES + '", "index": "y"}\n')
    assert index_files.read_stored(str(path)) == {str(tmp_path / "a"): "x"}
    assert "m.frames.jsonl are not used: a line has 16777216 bytes or more" in caplog.text
    with open(path, "wb") as file:
        file.truncate(index_files.MAX_BYTES + 1)
    assert index_files.read_stored(str(path)) == {}
    assert "are not used: Larger than 1073741824 bytes" in caplog.text
    monkeypatch.setattr(index_files, "MAX_LINE_BYTES", 100)
    assert index_files.encode_index(make_index(30), (5, 7)) == ""  # it could not be read again


def test_an_index_of_an_hour_is_small():
    text = index_files.encode_index(make_index(30 * 3600), (5, 7))
    assert len(text) < 4000


def test_training_uses_the_indexes_of_the_manifest(cache, scans, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "MIN_STORED_FRAMES", 60)
    for name, frames in (("long.mp4", 100), ("short.mp4", 20)):
        videos.write(tmp_path / name, options=X264, frames=frames)
    rows = "".join(f"long.mp4,s,{start},{start + 1}\n" for start in range(3))
    (tmp_path / "list.csv").write_text(f"path,source,start,end\n{rows}short.mp4,s,,\n")
    options = indexing.IndexOptions(progress=False, timeout=20.0)
    monkeypatch.setattr(
        indexing.probing,
        "probe_all",
        lambda paths, *, probe, **_: ((path, probe(path)) for path in paths),
    )
    indexing.build_manifest(tmp_path / "list.csv", tmp_path / "out.csv", options=options)
    (line,) = (tmp_path / "out.frames.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "long.mp4"
    scans.clear()
    config = common.data()
    config.update(manifest=str(tmp_path / "out.csv"), frames=4, size=32, short_side=32, workers=0)
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=4)
    (batch,) = list(dataset)
    assert scans == [str(tmp_path / "short.mp4")]
    expected = decode.read_frames(
        tmp_path / "long.mp4", lambda n: clips.sample_sparse(n, 4, None), start=1.0, end=2.0
    )
    assert videos.numbers(expected) == [28, 34, 40, 46]
    (tmp_path / "out.frames.jsonl").write_text("{\n")
    monkeypatch.setattr(video_io, "CACHE", video_io.IndexCache())
    (again,) = list(dataset)
    np.testing.assert_array_equal(again["video"], batch["video"])


def test_files_that_must_be_decoded_to_find_their_frames_are_stored(videos, tmp_path):
    path = videos.write(tmp_path / "a.ts", frames=30)
    with decode.open_video(path) as video, demux.open_stream(str(path)):
        assert index_files.is_slow(video.index)


@pytest.mark.parametrize("field", [2, 3])
def test_objects_in_place_of_lists_are_damage(field):
    fields = [1, 2, [0, 1], [0], 0, True]
    fields[field] = {"a": 1}
    text = base64.b64encode(zlib.compress(json.dumps(fields).encode())).decode()
    assert index_files.decode_index(text, (1, 2)) is None
