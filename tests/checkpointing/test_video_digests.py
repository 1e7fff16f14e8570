"""Digests of local videos, and runs that notice videos replaced behind an unchanged manifest."""

import contextlib
import os
import pathlib
import shutil
import threading

import ml_collections
import pytest

from invnext_jax import train
from invnext_jax.checkpointing import video_digests
from invnext_jax.data import manifest
from invnext_jax.errors import UserError


def make_record(*digests):
    rows = [{"row": 9 * n, "path": f"/v/{n}.mp4", "digest": d} for n, d in enumerate(digests)]
    return {"video_digests": rows}


def test_only_files_that_could_be_read_twice_are_compared():
    saved = make_record("a", "", "c", "d")
    current = make_record("a", "b", "", "x")
    assert video_digests.find_replaced(saved, current) == ["'/v/3.mp4'"]
    assert video_digests.find_replaced(make_record(), current) == []
    assert video_digests.find_replaced({}, current) == []  # a checkpoint of an older version
    assert video_digests.find_replaced(saved, make_record()) == []


def test_files_are_compared_by_row_so_that_they_can_be_moved():
    current = make_record("a", "b")
    for entry in current["video_digests"]:
        entry["path"] = f"/moved{entry['path']}"
    assert video_digests.find_replaced(make_record("a", "b"), current) == []


def test_errors_name_a_video_and_what_to_change():
    with pytest.raises(UserError, match=r"'/v/1.mp4' and 1 more of 3 that were .*restore"):
        video_digests.check_restored("f", make_record("a", "b", "c"), make_record("a", "x", "y"))
    with pytest.raises(UserError, match=r"'/v/0.mp4' of this process .* to all hosts"):
        video_digests.check_hosts(make_record("a"), make_record("b"))
    video_digests.check_hosts(make_record("a", ""), make_record("a", "b"))


def test_unreadable_videos_are_mentioned():
    assert video_digests.describe_unreadable(make_record("a", "b")) == ""
    sentence = video_digests.describe_unreadable(make_record("a", "", ""))
    assert sentence.startswith("2 of the 3 videos") and "'/v/1.mp4'" in sentence


def test_copies_are_mentioned():
    assert video_digests.describe_copies(make_record("a", "b", "", "")) == ""
    sentence = video_digests.describe_copies(make_record("a", "b", "", "a", "a", ""))
    assert sentence.startswith("warning: 2 of the 6 videos")
    assert "'/v/3.mp4' and '/v/0.mp4'" in sentence


def test_resumed_run_refuses_replaced_videos(
    tiny_config, world, stage1_run, one_device, tmp_path, capsys
):
    shutil.copytree(pathlib.Path(world).parent, tmp_path / "world")
    config = tiny_config("stage1")
    config.data.manifest = str(tmp_path / "world" / pathlib.Path(world).name)
    config = ml_collections.FrozenConfigDict(config)

    def resume():
        with contextlib.ExitStack() as stack:
            train.prepare(config, stage1_run, stack)
        return capsys.readouterr().out

    assert "cannot be read" not in resume()  # the files were moved
    table = manifest.read_manifest(config.data.manifest)
    first, second = (pathlib.Path(table.paths[row]) for row in (5, 6))
    content = first.read_bytes()
    first.unlink()
    assert "1 of the 16 videos that identify the data cannot be read" in resume()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=f"the video '{first}' of 16 that were compared changed"):
        resume()
    first.write_bytes(content)
    resume()


def read(path, *rows):
    path.write_text("\n".join(["path,source,record", *rows]) + "\n")
    return manifest.read_manifest(path)


def test_local_files_are_listed_once(tmp_path):
    rows = ("b.mp4,x,", "a.mp4,x,", "b.mp4,x,", "file:///c.mp4,x,", "s.array_record,x,0")
    first = read(tmp_path / "a.csv", *rows, "s.array_record,x,1")
    world = manifest.read_manifest("world:simple/train?videos=3")
    names = ["b.mp4", "a.mp4", "s.array_record"]
    assert video_digests.list_files(first) == [str(tmp_path / name) for name in names]
    assert video_digests.list_files(world) == []


def test_digests_depend_on_contents_and_unreadable_files_have_none(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b", "missing", "nul\0")]
    (tmp_path / "a").write_bytes(b"x" * 200_000)
    (tmp_path / "b").write_bytes(b"x" * 200_000)
    first = list(video_digests.digest_files(paths, 60.0))
    assert first[0] == first[1] != "" and first[2:] == ["", ""]
    with (tmp_path / "b").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"y")
    second = list(video_digests.digest_files(paths, 60.0))
    assert second[0] == first[0] and second[1] not in (first[0], "")


def test_digests_keep_the_order_of_many_files(tmp_path):
    paths = [tmp_path / str(number) for number in range(3)] * 700  # more than one group
    for number, path in enumerate(paths[:3]):
        path.write_bytes(b"x" * number)
    found = list(video_digests.digest_files(paths, 60.0))
    assert len(set(found)) == 3 and found == found[:3] * 700


def test_pipes_and_files_that_hang_are_left_out(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"a")
    paths = [str(tmp_path / "pipe"), str(tmp_path / "a")]
    assert [bool(digest) for digest in video_digests.digest_files(paths, 60.0)] == [False, True]
    never = threading.Event()
    monkeypatch.setattr(video_digests.video_io, "digest_file", lambda _: never.wait())
    assert list(video_digests.digest_files(paths, 0.1)) == ["", ""]
    never.set()


def test_sample_has_rows_of_each_source_with_the_first_and_the_last(tmp_path):
    rows = [f"{n}.mp4,{'small' if n % 500 == 7 else 'large'}," for n in range(2000)]
    table = read(tmp_path / "a.csv", *rows)
    for n in range(2000):
        (tmp_path / f"{n}.mp4").write_bytes(bytes(n))
    found = video_digests.sample_digests(table, 60.0)
    sampled = {entry["row"] for entry in found}
    assert len(found) == 256 + 4
    assert sampled >= {7, 507, 1007, 1507, 0, 1999}
    large = sorted(sampled - {7, 507, 1007, 1507})
    assert max(b - a for a, b in zip(large, large[1:], strict=False)) < 10  # 2000 / 255, rounded up
    assert found == video_digests.sample_digests(table, 60.0)
    assert all(entry["path"] == table.paths[entry["row"]] for entry in found)
    assert all(entry["digest"] for entry in found)


def test_all_files_of_a_small_manifest_are_compared(tmp_path):
    table = read(tmp_path / "a.csv", *(f"{n}.mp4,a," for n in range(512)))
    found = video_digests.sample_digests(table, 60.0)
    assert [entry["row"] for entry in found] == list(range(512))


@pytest.mark.parametrize(("sources", "count"), [(100, 500), (3000, 512)])
def test_sample_of_many_sources_is_bounded(sources, count, tmp_path):
    rows = [f"{n}.mp4,{n % sources}," for n in range(6000)]
    found = video_digests.sample_digests(read(tmp_path / "a.csv", *rows), 60.0)
    assert len(found) == count and not any(entry["digest"] for entry in found)


def test_each_shard_of_the_sample_is_read_once(tmp_path):
    (tmp_path / "s").write_bytes(b"shard")
    rows = [f"s,x,{n}" for n in range(30)] + ["file:///c.mp4,x,"]
    (entry,) = video_digests.sample_digests(read(tmp_path / "a.csv", *rows), 60.0)
    assert entry["row"] == 0 and entry["digest"]
