"""Digests of local videos change with the contents; other files have none."""

import os
import threading

import pytest

from invnext_jax.data import fingerprints, manifest


def read(path, *rows):
    path.write_text("\n".join(["path,source,record", *rows]) + "\n")
    return manifest.read_manifest(path)


def test_local_files_are_listed_once(tmp_path):
    rows = ("b.mp4,x,", "a.mp4,x,", "b.mp4,x,", "file:///c.mp4,x,", "s.array_record,x,0")
    first = read(tmp_path / "a.csv", *rows, "s.array_record,x,1")
    world = manifest.read_manifest("world:simple/train?videos=3")
    names = ["b.mp4", "a.mp4", "s.array_record"]
    assert fingerprints.list_files(first) == [str(tmp_path / name) for name in names]
    assert fingerprints.list_files(world) == []


def test_digests_depend_on_contents_and_unreadable_files_have_none(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b", "missing", "nul\0")]
    (tmp_path / "a").write_bytes(b"x" * 200_000)
    (tmp_path / "b").write_bytes(b"x" * 200_000)
    first = list(fingerprints.digest_files(paths, 60.0))
    assert first[0] == first[1] != "" and first[2:] == ["", ""]
    with (tmp_path / "b").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"y")
    second = list(fingerprints.digest_files(paths, 60.0))
    assert second[0] == first[0] and second[1] not in (first[0], "")


def test_digests_keep_the_order_of_many_files(tmp_path):
    paths = [tmp_path / str(number) for number in range(3)] * 700  # more than one group
    for number, path in enumerate(paths[:3]):
        path.write_bytes(b"x" * number)
    found = list(fingerprints.digest_files(paths, 60.0))
    assert len(set(found)) == 3 and found == found[:3] * 700


def test_pipes_and_files_that_hang_are_left_out(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"a")
    paths = [str(tmp_path / "pipe"), str(tmp_path / "a")]
    assert [bool(digest) for digest in fingerprints.digest_files(paths, 60.0)] == [False, True]
    never = threading.Event()
    monkeypatch.setattr(fingerprints.video_io, "digest_file", lambda _: never.wait())
    assert list(fingerprints.digest_files(paths, 0.1)) == ["", ""]
    never.set()


def test_sample_has_rows_of_each_source_with_the_first_and_the_last(tmp_path):
    rows = [f"{n}.mp4,{'small' if n % 500 == 7 else 'large'}," for n in range(2000)]
    table = read(tmp_path / "a.csv", *rows)
    for n in range(2000):
        (tmp_path / f"{n}.mp4").write_bytes(bytes(n))
    found = fingerprints.sample_digests(table, 60.0)
    sampled = {entry["row"] for entry in found}
    assert len(found) == 16 + 4
    assert sampled >= {7, 507, 1007, 1507, 0, 1999}
    large = sorted(sampled - {7, 507, 1007, 1507})
    assert max(b - a for a, b in zip(large, large[1:], strict=False)) < 150  # 2000 / 15, rounded
    assert found == fingerprints.sample_digests(table, 60.0)
    assert all(entry["path"] == table.paths[entry["row"]] for entry in found)
    assert all(entry["digest"] for entry in found)


@pytest.mark.parametrize(("sources", "count"), [(100, 500), (3000, 512)])
def test_sample_of_many_sources_is_bounded(sources, count, tmp_path):
    rows = [f"{n}.mp4,{n % sources}," for n in range(6000)]
    found = fingerprints.sample_digests(read(tmp_path / "a.csv", *rows), 60.0)
    assert len(found) == count and not any(entry["digest"] for entry in found)


def test_each_shard_of_the_sample_is_read_once(tmp_path):
    (tmp_path / "s").write_bytes(b"shard")
    rows = [f"s,x,{n}" for n in range(30)] + ["file:///c.mp4,x,"]
    (entry,) = fingerprints.sample_digests(read(tmp_path / "a.csv", *rows), 60.0)
    assert entry["row"] == 0 and entry["digest"]
