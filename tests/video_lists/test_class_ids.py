"""Class ids from files, from the names of classes, and of joined lists."""

import json
import os

import pytest
from list_cases import KINETICS, read, read_entries, touch

from invnext_jax.data import class_names
from invnext_jax.errors import UserError
from invnext_jax.video_lists import class_ids, lists
from invnext_jax.video_lists.video_list import VideoEntry, VideoList


@pytest.mark.parametrize("name", ["classes.json", "classes.txt"])
def test_class_ids_of_another_split_can_be_set(name, tmp_path):
    path, classes = tmp_path / "val.csv", tmp_path / name
    path.write_text(KINETICS)
    touch(tmp_path, "-3B32lodo2M.mp4")
    names = ["zumba", "playing guitar", "x", "abseiling"]
    text = json.dumps({n: i for i, n in enumerate(names)}) if "json" in name else "\n".join(names)
    classes.write_text(text)
    assert read_entries(path, tmp_path, classes=str(classes))[0][-1] == 3
    path.write_text(KINETICS.replace("zumba", "sumo"))
    with pytest.raises(UserError, match=r"class 'sumo' of .*val.csv is not in .*classes"):
        read(path, classes=str(classes))


@pytest.mark.parametrize("text", ["null", "Infinity", "[1]", "1.9", "true", '"1_0"', "[" * 100_000])
def test_impossible_class_ids_are_refused(text, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(f'{{"a": {text}}}')
    with pytest.raises(ValueError, match="must map names to integers"):
        class_names.read_class_names(path)


def test_lists_are_joined_with_common_class_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("video,label\na.mp4,run\nb.mp4,jump\n")
    (tmp_path / "b.csv").write_text("video,label\nc.mp4,climb\nd.mp4,run\n")
    videos = lists.read_lists(f"{tmp_path}/a.csv,{tmp_path}/b.csv", lists.ListOptions())
    assert videos.classes == {"climb": 0, "jump": 1, "run": 2}
    assert [e.labels["label_class"] for e in videos.entries] == [2, 1, 0, 2]
    assert [e.source for e in videos.entries] == ["a", "a", "b", "b"]
    for name, ids in (("x", {"run": 0, "jump": 1}), ("y", {"jump": 0, "run": 1})):
        (tmp_path / f"{name}.csv").write_text(f"path,source,label_class\n{name}.mp4,s,0\n")
        (tmp_path / f"{name}.classes.json").write_text(json.dumps(ids))
    with pytest.raises(UserError, match=r"x.csv and .*y.csv number classes differently .*--task"):
        lists.read_lists(f"{tmp_path}/x.csv,{tmp_path}/y.csv", lists.ListOptions())
    options = lists.ListOptions(classes=f"{tmp_path}/x.classes.json")
    joined = lists.read_lists(f"{tmp_path}/x.csv,{tmp_path}/y.csv", options)
    assert [e.labels["label_class"] for e in joined.entries] == [0, 1]


MARKS = "a" + "\u0315\u0300" * 1_000_000  # normalizing this name would take hours


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("l.csv", f"path,source,label\na.mp4,s,b\nb.mp4,s,{MARKS}\n", "line 3, label"),
        ("l.csv", f"youtube_id,label\na,b\nb,{MARKS}\n", "line 3"),
        ("l.json", json.dumps([{"id": 1, "template": MARKS}]), "list .*l.json"),
    ],
)
def test_long_class_names_are_refused(name, text, where, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{where}: .* has 2,000,001 characters, .* shorten it"):
        read(tmp_path / name)


def test_long_names_in_files_of_classes_are_refused(tmp_path):
    (tmp_path / "l.txt").write_text("a.mp4 zumba\n")
    (tmp_path / "classes.txt").write_text(f"zumba\n{MARKS}\n")
    with pytest.raises(UserError, match=r"cannot be read: a name has 2,000,001 characters"):
        read(tmp_path / "l.txt", classes=str(tmp_path / "classes.txt"))


def test_folders_and_pipes_named_like_class_names_are_ignored(tmp_path):
    os.mkdir(tmp_path / "x.classes.json")
    os.mkfifo(tmp_path / "y.classes.json")
    videos = VideoList([], {"run": 0})
    assert class_ids.match_neighbors(videos, lists.ListOptions(), tmp_path / "o.csv") == videos


def test_names_of_a_manifest_with_two_suffixes_are_reused(tmp_path):
    (tmp_path / "x.csv.classes.json").write_text('{"run": 1, "walk": 0}')  # index --out=x.csv.csv
    videos = VideoList([], {"run": 0})
    found = class_ids.match_neighbors(videos, lists.ListOptions(), tmp_path / "o.csv")
    assert found.classes_file == str(tmp_path / "x.csv.classes.json")


def test_class_names_must_be_characters(tmp_path):
    (tmp_path / "l.txt").write_text("a.mp4 zumba\n")
    (tmp_path / "classes.json").write_text('{"\\ud800": 0, "zumba": 1}')
    with pytest.raises(UserError, match="cannot be read: a name contains a surrogate"):
        read(tmp_path / "l.txt", classes=str(tmp_path / "classes.json"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "run\n\njump\n"),
        ("c.txt", "\nrun"),
        ("c.txt", "run\njump\n run"),
        ("c.json", '["run", "", "jump"]'),
        ("c.json", '{"run": 0, "jump": 1, "run": 2}'),
    ],
)
def test_blank_and_repeated_class_names_do_not_move_the_others(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="a name (is blank or )?occurs twice"):
        class_names.read_class_names(tmp_path / name)
    (tmp_path / name).write_text('["run", "jump", " "]' if "json" in name else "run\r\njump\n\n")
    assert class_names.read_class_names(tmp_path / name) == {"run": 0, "jump": 1}


def test_labels_without_a_class_name_are_a_sentence(tmp_path):
    entries = [VideoEntry("a.mp4", "mine", labels={"label_action": 7})]
    videos = VideoList(entries, {"run": 0}, "a.classes.json")
    with pytest.raises(UserError, match="the label 7 has no name in a.classes.json"):
        class_ids.renumber(videos, "label_action", {"run": 1})


@pytest.mark.parametrize("labels", [("1,2", "3"), ("1|3", "2|4"), ("2 3", "-1"), ("[0, 1]", "")])
@pytest.mark.parametrize("is_table", [True, False])
def test_lists_of_labels_are_refused(labels, is_table, tmp_path):
    path = tmp_path / "list.csv"
    rows = [f'{number}.mp4,"{label}"' for number, label in enumerate(labels)]
    path.write_text("\n".join(["video,label", *rows] if is_table else rows) + "\n")
    with pytest.raises(UserError, match="is a list of labels, but a video has one label: keep one"):
        lists.read_list(path, lists.ListOptions())
    path.write_text("video,label\na.mp4,1 to 2\nb.mp4,2020-01-02\nc.mp4,3 4\n")
    assert len(lists.read_list(path, lists.ListOptions()).classes) == 3


def test_names_beside_numbers_are_class_names(tmp_path):
    path, classes = tmp_path / "list.csv", tmp_path / "ids.txt"
    path.write_text("video,label,Class\na.mp4,7,run\nb.mp4,2, jump \nc.mp4,7,run\nd.mp4,,run\n")
    videos = lists.read_list(path, lists.ListOptions())
    assert videos.classes == {"jump": 2, "run": 7} and videos.classes_file == os.fspath(path)
    assert "class names: the column 'Class'" in videos.notes
    assert not any("not read" in note for note in videos.notes)
    classes.write_text("run\njump\n")
    videos = lists.read_list(path, lists.ListOptions(classes=str(classes)))
    assert [entry.labels["label_class"] for entry in videos.entries] == [0, 1, 0, -1]
    for rows in ("1,run\nb.mp4,2,run", "1,run\nb.mp4,1,jump", "1,run\nb.mp4,2,", "1,5\nb.mp4,2,6"):
        path.write_text(f"video,label,class_name\na.mp4,{rows}\n")
        videos = lists.read_list(path, lists.ListOptions())
        assert videos.classes is None
        assert "columns that are not read: class_name" in videos.notes


@pytest.mark.parametrize("is_table", [True, False])
def test_names_that_python_reads_as_numbers_are_class_names(is_table, tmp_path):
    path, labels = tmp_path / "list.csv", ("1_10", "11_0", "1e2", "11_0")
    rows = [f"{number}.mp4,{label}" for number, label in enumerate(labels)]
    path.write_text("\n".join(["video,label", *rows] if is_table else rows) + "\n")
    videos = lists.read_list(path, lists.ListOptions())
    assert videos.classes == {"11_0": 0, "1_10": 1, "1e2": 2}
    assert [entry.labels["label_class"] for entry in videos.entries] == [1, 0, 2, 0]
    path.write_text("video,label\na.mp4,21\nb.mp4,2_1\n")
    with pytest.raises(UserError, match="'21' is a number, but '2_1' is a class name: use only"):
        lists.read_list(path, lists.ListOptions())
    path.write_text("video,start,end\na.mp4,0,1_30\n")
    with pytest.raises(UserError, match="'1_30' must be a number of seconds"):
        lists.read_list(path, lists.ListOptions())
