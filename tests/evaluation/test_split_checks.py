"""Comparison of two splits: copies, unseen classes and class numbers."""

import json
import threading

import ml_collections
import numpy as np
import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from configs import common
from invnext_jax.data import copies, files, manifest, shards
from invnext_jax.errors import UserError
from invnext_jax.evaluation import split_checks
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.spec import WorldSpec
from invnext_jax.workers.process_worker import WorkerDiedError


@pytest.fixture
def folder(tmp_path):
    """Makes six files.

    File 4 has the same content as file 1. File 5 differs from it only in the middle.
    """
    rng = np.random.default_rng(0)
    contents = [rng.bytes(200_000) for _ in range(4)]
    contents.append(contents[1])
    contents.append(contents[1][:100_000] + b"\0" + contents[1][100_001:])
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.mp4").write_bytes(content)
    return tmp_path


def write(folder, name, rows, columns="path,source,label_x"):
    (folder / f"{name}.csv").write_text("\n".join([columns, *rows]) + "\n")
    return str(folder / f"{name}.csv")


def write_shard(path, videos):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for video in videos:
        example = tf_example_pb2.Example()
        example.features.feature["mp4"].bytes_list.value.append(video)
        writer.write(example.SerializeToString())
    writer.close()


def get_config(train, val, same_manifest=False):
    paths = {"train_manifest": train, "val_manifest": val, "same_manifest": same_manifest}
    return ml_collections.ConfigDict({**paths, "tasks": (), "data": common.data()})


def test_labels_of_one_manifest_only_are_noted(folder):
    train = write(folder, "t", ["0.mp4,s,0,1", "1.mp4,s,1,0"], "path,source,label_x,label_action")
    val = write(folder, "v", ["2.mp4,s,0,1", "3.mp4,s,1,0"], "path,source,label_x,label_actions")
    config = get_config(train, val)
    assert split_checks.compare_splits(config, ("x",), ["knn"]).notes == [
        "Only the training manifest has the column label_action, so it is not evaluated.",
        "Only the held-out manifest has the column label_actions, so it is not evaluated.",
    ]
    config.tasks = ("x",)
    assert split_checks.compare_splits(config, ("x",), ["knn"]).notes == []


def test_copies_are_found_by_name_and_content(folder):
    train = write(folder, "t", ["0.mp4,s,0", "1.mp4,s,1", "gone.mp4,s,1"])
    val = write(folder, "v", ["2.mp4,s,0", "4.mp4,s,1", "0.mp4,s,1", "away.mp4,s,0"])
    report = split_checks.compare_splits(get_config(train, val), ("x",), ["knn"])
    assert report.facts == {"held_out": 4, "copies": 2, "repeats": 0, "unseen": {}}
    (note,) = report.notes
    assert "2 of 4 held-out videos are also training videos" in note and "4.mp4" in note
    rows = copies.find_copies(*map(manifest.read_manifest, (train, val)))
    assert rows == {1: 1, 2: 0}
    assert not split_checks.compare_splits(
        get_config(train, write(folder, "w", ["2.mp4,s,0", "3.mp4,s,1"])), ("x",), ["knn"]
    ).notes


def test_repeated_videos_are_found_by_name_content_and_times(folder):
    train = write(folder, "t", ["0.mp4,s,0,,"], "path,source,label_x,start,end")
    rows = [
        *("1.mp4,s,0,,", "2.mp4,s,0,,", "./1.mp4,s,0,,", "4.mp4,s,0,,", "3.mp4,s,0,,"),
        *("1.mp4,s,0,0,3", "1.mp4,s,0,2,5", "4.mp4,s,0,2,5", "gone.mp4,s,0,,", "gone.mp4,s,0,,"),
    ]
    val = write(folder, "v", rows, "path,source,label_x,start,end")
    found = copies.find_repeats(manifest.read_manifest(val))
    assert found == {2: 0, 3: 0, 7: 6, 9: 8}
    report = split_checks.compare_splits(get_config(train, val), ("x",), ["knn"])
    assert report.facts["repeats"] == 4
    (note,) = report.notes
    assert note.startswith("4 of 10 held-out videos occur earlier in the same list")


def test_parts_of_a_video_are_copies_if_they_overlap(folder):
    columns = "path,source,label_x,start,end"
    train = write(folder, "t", ["1.mp4,s,0,0,10", "1.mp4,s,0,20,"], columns)
    rows = [
        "1.mp4,s,0,10,20",
        "4.mp4,s,0,10,20",
        "1.mp4,s,0,9,12",
        "4.mp4,s,0,30,40",
        "4.mp4,s,0,,",
    ]
    val = write(folder, "v", rows, columns)
    found = copies.find_copies(*map(manifest.read_manifest, (train, val)))
    assert found == {2: 0, 3: 1, 4: 0}


def test_many_parts_of_a_video_are_compared_in_linear_time(folder):
    columns, rows = "path,source,label_x,start,end", range(20_000)
    train = write(folder, "t", [f"1.mp4,s,0,{n},{n + 0.4}" for n in rows], columns)
    val = write(folder, "v", [f"1.mp4,s,0,{n + 0.5},{n + 0.9}" for n in rows], columns)
    parts = [manifest.read_manifest(name) for name in (train, val)]
    assert copies.find_copies(*parts) == {}


@pytest.mark.parametrize("seed", range(20))
def test_the_search_by_time_equals_a_comparison_of_all_pairs(folder, seed):
    rng, columns = np.random.default_rng(seed), "path,source,label_x,start,end"
    times = rng.integers(0, 30, (2, 12, 2))
    names = [
        write(folder, name, [f"1.mp4,s,0,{a},{b + 1}" for a, b in np.sort(part)], columns)
        for name, part in zip("tv", times, strict=True)
    ]
    train, val = map(manifest.read_manifest, names)
    expected = {
        v
        for v, (start, end) in enumerate(zip(val.start, val.end, strict=True))
        if (np.maximum(train.start, start) < np.minimum(train.end, end)).any()
    }
    found = copies.find_copies(train, val)
    assert found.keys() == expected
    for v, t in found.items():
        assert max(train.start[t], val.start[v]) < min(train.end[t], val.end[v])


def test_copies_in_shards_and_worlds_are_found(folder, monkeypatch):
    write_shard(folder / "a", [b"one", b"two"])
    write_shard(folder / "b", [b"two", b"three"])
    # Records are read in a worker process, because they can need any amount of memory.
    monkeypatch.setattr(shards, "read_video", lambda *_: pytest.fail("read in this process"))
    columns = "path,source,label_x,record"
    train = write(folder, "t", ["a,s,0,0", "a,s,0,1"], columns)
    val = write(folder, "v", ["b,s,0,0", "b,s,0,1", "a,s,0,0"], columns)
    found = copies.find_copies(*map(manifest.read_manifest, (train, val)))
    assert found == {0: 1, 2: 0}
    worlds = [manifest.read_manifest(f"world:simple/train?videos={n}") for n in (3, 5)]
    assert copies.find_copies(*worlds) == {0: 0, 1: 1, 2: 2}
    other = manifest.read_manifest("world:simple/val?videos=3")
    assert copies.find_copies(worlds[0], other) == {}


class Killed:
    """A worker that dies while it reads the shard `a`."""

    def __init__(self, *_):
        self.tasks = []

    def __call__(self, path, record):
        self.tasks.append((path[-1], record))
        if path.endswith("a"):
            raise WorkerDiedError("exit code -9")
        return f"{record:032}"

    def close(self):
        pass


def test_records_that_end_their_worker_are_not_compared(folder, monkeypatch):
    worker = Killed()
    monkeypatch.setattr(shards, "SupervisedWorker", lambda *_: worker)
    columns = "path,source,label_x,record"
    train = write(folder, "t", ["a,s,0,0", "a,s,0,1", "b,s,0,2"], columns)
    val = write(folder, "v", ["b,s,0,1", "c,s,0,2"], columns)
    assert copies.find_copies(*map(manifest.read_manifest, (train, val))) == {1: 2}
    assert [record for shard, record in worker.tasks if shard == "a"] == [0]


def test_comparison_of_contents_has_a_time_limit(folder, monkeypatch):
    train = write(folder, "t", ["0.mp4,s,0", "1.mp4,s,1"])
    val = write(folder, "v", ["0.mp4,s,0", "4.mp4,s,1"])
    parts = [manifest.read_manifest(name) for name in (train, val)]
    assert copies.find_copies(*parts, seconds=60.0) == {0: 0, 1: 1}
    assert copies.find_copies(*parts, [1], [0, 1], seconds=60.0) == {1: 1}
    never = threading.Event()
    monkeypatch.setattr(copies, "_size", lambda _: never.wait())
    assert copies.find_copies(*parts, seconds=0.1) == {0: 0}
    never.set()


def test_classes_that_training_lacks_are_counted_and_named(folder):
    train = write(folder, "t", ["0.mp4,s,0", "1.mp4,s,1", "5.mp4,s,-1"])
    val = write(folder, "v", ["2.mp4,s,1", "3.mp4,s,7", "3.mp4,s,7", "2.mp4,s,8", "2.mp4,s,-1"])
    report = split_checks.compare_splits(get_config(train, val), ("x",), ["knn"])
    assert report.facts["unseen"] == {"x": {"videos": 3, "of": 4, "classes": [7, 8]}}
    assert "x: 3 of 4 held-out videos belong to classes with no training videos" in report.notes[-1]
    assert "(7, 8; 2 in total). The accuracies of probes count them as wrong" in report.notes[-1]
    (folder / "v.classes.json").write_text(json.dumps({"run": 1, "jump": 7, "climb": 8}))
    report = split_checks.compare_splits(get_config(train, val), ("x",), ["knn"])
    assert "(jump, climb; 2 in total)" in report.notes[-1]
    assert "t.csv has no class names" in report.notes[0]


@pytest.mark.parametrize(
    ("evaluators", "wrong", "dropped"),
    [(("anticipation",), 0, 1), (("knn", "anticipation"), 1, 1), (("knn",), 1, 0)],
)
def test_the_note_says_how_unseen_classes_are_counted(folder, evaluators, wrong, dropped):
    train = write(folder, "t", ["0.mp4,s,0", "1.mp4,s,1"])
    val = write(folder, "v", ["2.mp4,s,1", "3.mp4,s,7"])
    note = split_checks.compare_splits(get_config(train, val), ("x",), evaluators).notes[-1]
    assert note.count("The accuracies of probes count them as wrong.") == wrong
    assert note.count("The class-mean recall of anticipation leaves them out.") == dropped


@pytest.mark.parametrize(
    ("train_ids", "val_ids", "conflict"),
    [
        ({"abseiling": 0, "archery": 1}, {"archery": 0}, "'archery' has the number 1 in one and 0"),
        ({"abseiling": 0}, {"archery": 0}, "number 0 is 'abseiling' in one and 'archery'"),
        ({"abseiling": 0, "archery": 1}, {"archery": 1}, ""),
        ({"abseiling": 0, "archery": 1}, {"zumba": 2}, ""),
    ],
)
def test_manifests_that_number_classes_differently_are_refused(
    folder, train_ids, val_ids, conflict
):
    train, val = write(folder, "t", ["0.mp4,s,0"]), write(folder, "v", ["1.mp4,s,0"])
    for name, ids in (("t", train_ids), ("v", val_ids)):
        (folder / f"{name}.classes.json").write_text(json.dumps(ids))
    if conflict:
        with pytest.raises(UserError, match=f"{conflict}.*--classes={folder}/t.classes.json"):
            split_checks.check_class_names(get_config(train, val), ("x",))
        joined = get_config(f"{train},{val}", write(folder, "w", ["2.mp4,s,0"]))
        with pytest.raises(UserError, match=conflict):
            split_checks.check_class_names(joined, ("x",))
    else:
        names, notes = split_checks.check_class_names(get_config(train, val), ("x",))
        assert names == {"x": {**train_ids, **val_ids}} and not notes


def test_class_names_of_remote_manifests_are_compared(folder, monkeypatch):
    names = [f"file://{write(folder, name, [f'{folder}/0.mp4,s,0'])}" for name in "tv"]
    config = get_config(*names)
    assert split_checks.check_class_names(config, ("x",)) == ({}, [])
    (folder / "t.classes.json").write_text('{"abseiling": 0}')
    _, (note,) = split_checks.check_class_names(config, ("x",))
    assert "v.csv has no class names" in note
    (folder / "v.classes.json").write_text('{"archery": 0}')
    with pytest.raises(UserError, match="number 0 is 'abseiling' in one and 'archery'"):
        split_checks.check_class_names(config, ("x",))
    (folder / "v.classes.json").write_text('{"archery": -1}')
    with pytest.raises(UserError, match="file:///.*v.classes.json cannot be read .a number is not"):
        split_checks.check_class_names(config, ("x",))
    open_remote = files.open_remote

    def forbid(name):
        if name.endswith("v.classes.json"):
            raise PermissionError("403")
        return open_remote(name)

    monkeypatch.setattr(files, "open_remote", forbid)
    _, notes = split_checks.check_class_names(config, ("x",))
    assert "v.classes.json cannot be read (PermissionError: 403)" in notes[0]


@pytest.mark.parametrize("is_written", [False, True])
def test_worlds_of_different_levels_number_classes_differently(is_written, tmp_path):
    train = "world:full/train?videos=4&size=16&frames=2"
    if is_written:
        spec = WorldSpec(level="full", size=16, frames=2)
        train = str(write_world(spec, tmp_path, 2, progress=False))
    config = get_config(train, "world:simple/val?videos=4")
    with pytest.raises(UserError, match="number 0 is 'zero' in one and 'disc' .* same level"):
        split_checks.check_class_names(config, ("shape",))
    names, notes = split_checks.check_class_names(config, ("color",))
    assert names["color"]["red"] == 0 and not notes


def test_the_same_manifest_twice_is_refused_unless_allowed(folder):
    train, other = write(folder, "t", ["0.mp4,s,0"]), write(folder, "o", ["1.mp4,s,0"])
    (folder / "renamed.csv").write_bytes((folder / "t.csv").read_bytes())
    for val in (train, f"{other},{train}", str(folder / "renamed.csv")):
        with pytest.raises(UserError, match="is also in config.train_manifest: .*same_manifest"):
            split_checks.check_different(get_config(train, val))
        split_checks.check_different(get_config(train, val, same_manifest=True))
    split_checks.check_different(get_config(train, other))
    with pytest.raises(UserError, match="is also in config.train_manifest"):
        split_checks.check_different(get_config(*["world:simple/train?videos=2"] * 2))
