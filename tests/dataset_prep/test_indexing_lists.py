"""Lists are indexed with their windows, labels and class ids."""

import json

import pytest
from list_cases import build, counts, rows

from invnext_jax.data import manifest
from invnext_jax.errors import UserError
from invnext_jax.video_lists import lists


def test_duplicate_rows_and_empty_windows_are_quarantined(folder):
    (folder / "list.csv").write_text(
        "path,source,start,end,label_x\n0.mp4,s,,,1\n0.mp4,s,,,1\n0.mp4,s,,,2\n0.mp4,s,0.5,,3\n"
        "0.mp4,s,1.5,2,4\n0.mp4,s,0.5,0.5,4\ngone.mp4,s,,,1\n"
    )
    assert counts(build(folder / "list.csv", folder / "out.csv")) == (7, 2, 5, 0)
    assert [r.labels["label_x"] for r in manifest.read_manifest(folder / "out.csv")] == [1, 3]
    reasons = [row["reason"] for row in rows(folder / "out.quarantine.csv")]
    assert reasons[:3] == [
        *("listed before", "listed before with other labels"),
        "no frame between 1.5 and 2.0 seconds of 1",
    ]
    assert "no frame between 0.5" in reasons[3] and "No such file" in reasons[4]


def test_kinetics_windows_apply_only_to_untrimmed_files(folder):
    (folder / "list.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nb,0,4,14,train\na,deep,1,2,train\n"
        "a,1,0.25,0.75,train\n"
    )
    list_options = lists.ListOptions(task="action")
    # 1.mp4 lasts 1 s, within the tolerance for a window of 0.5 s.
    summary = build(folder / "list.csv", folder / "out.csv", list_options=list_options)
    assert counts(summary) == (3, 2, 1, 0)
    one, two = manifest.read_manifest(folder / "out.csv")
    assert (one.start, one.end, one.labels, one.source) == (
        *(None, None, {"label_action": 1}),
        "kinetics",
    )
    assert two.labels == {"label_action": 0}
    assert json.loads((folder / "out.classes.json").read_text()) == {"a": 0, "b": 1}


def test_untrimmed_video_keeps_its_window(folder, videos):
    videos.write(folder / "whole.mp4", frames=250, options={"preset": "ultrafast"})  # 10 seconds
    text = "label,youtube_id,time_start,time_end\na,whole,2.5,5\n"
    (folder / "list.csv").write_text(text)
    build(folder / "list.csv", folder / "out.csv")
    (record,) = manifest.read_manifest(folder / "out.csv")
    assert (record.start, record.end) == (2.5, 5.0)


def test_classes_with_similar_names_are_named(folder):
    names = ["Run", "run", "jump high", "jump_high", "walk"]
    videos = ["0", "1", "2", "deep/copy", "0"]
    rows = (f"{video}.mp4,a,{name}\n" for video, name in zip(videos, names, strict=True))
    (folder / "list.csv").write_text("path,source,label\n" + "".join(rows))
    summary = build(folder / "list.csv", folder / "m.csv")
    (note,) = (note for note in summary.notes if "class names" in note)
    assert note.startswith("warning: the class names 'Run' and 'run' are different classes, and 1 ")
    (folder / "list.csv").write_text("path,source,label\n0.mp4,a,run\n1.mp4,a,runs\n")
    summary = build(
        folder / "list.csv",
        folder / "n.csv",
        list_options=lists.ListOptions(classes="alphabetical"),
    )
    assert not any("class names" in note for note in summary.notes)


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_splits_indexed_apart_have_the_same_class_numbers(folder):
    (folder / "train.csv").write_text(f"{KINETICS}abseiling,0,,,\narchery,1,,,\nzumba,2,,,\n")
    (folder / "val.csv").write_text(f"{KINETICS}zumba,0,,,\narchery,1,,,\n")
    out, classes = folder / "m", {"abseiling": 0, "archery": 1, "zumba": 2}
    build(folder / "train.csv", out / "train.csv")
    summary = build(folder / "val.csv", out / "val.csv")
    assert f"class ids are those of {out}/train.classes.json" in str(summary)
    found = manifest.read_manifest(out / "val.csv").labels["label_class"].tolist()
    assert found == [classes["zumba"], classes["archery"]]
    for split in ("train", "val"):
        assert json.loads((out / f"{split}.classes.json").read_text()) == classes
        build(folder / f"{split}.csv", out / f"{split}.csv")  # repeating changes nothing
    own = lists.ListOptions(classes="alphabetical")
    build(folder / "val.csv", out / "own.csv", list_options=own)
    assert manifest.read_manifest(out / "own.csv").labels["label_class"].tolist() == [1, 0]
    again = lists.ListOptions(classes=str(out / "train.classes.json"))
    build(out / "own.csv", out / "again.csv", list_options=again)  # with the other numbers
    assert manifest.read_manifest(out / "again.csv").labels["label_class"].tolist() == found


def test_splits_that_would_be_numbered_differently_are_refused(folder):
    (folder / "train.csv").write_text(f"{KINETICS}abseiling,0,,,\narchery,1,,,\nzumba,2,,,\n")
    (folder / "val.csv").write_text(f"{KINETICS}zumba,0,,,\narchery,1,,,\n")
    (folder / "new.csv").write_text(f"{KINETICS}abseiling,0,,,\nbowling,1,,,\n")
    (folder / "other.csv").write_text(f"{KINETICS}walk,0,,,\nrun,1,,,\n")
    build(folder / "val.csv", folder / "m" / "val.csv")
    with pytest.raises(
        UserError, match=r"'archery' has the number 0 in one and 1 in .*--classes=alphabetical"
    ):
        build(folder / "train.csv", folder / "m" / "train.csv")
    build(folder / "other.csv", folder / "m" / "other.csv")  # another data set
    build(folder / "train.csv", folder / "n" / "train.csv")
    with pytest.raises(UserError, match="number 1 is 'archery' in one and 'bowling' in the other"):
        build(folder / "new.csv", folder / "n" / "new.csv")


def test_names_are_those_of_the_task_and_not_of_another_label_column(folder):
    (folder / "list.csv").write_text(
        "path,source,label_class,label\n0.mp4,s,1,indoor\n1.mp4,s,0,outdoor\n"
    )
    scene = lists.ListOptions(task="scene")
    build(folder / "list.csv", folder / "m.csv", list_options=scene)
    names = {"label_scene": {"indoor": 0, "outdoor": 1}}
    assert json.loads((folder / "m.classes.json").read_text()) == names
    summary = build(folder / "m.csv", folder / "again.csv", list_options=scene)
    assert json.loads((folder / "again.classes.json").read_text()) == names
    assert "set --task" not in str(summary)
    summary = build(folder / "m.csv", folder / "other.csv")
    assert "m.classes.json: names of label_scene are not read: set --task" in str(summary)
    assert not (folder / "other.classes.json").exists()
    (folder / "list.classes.json").write_text('{"walk": 0, "run": 1}')  # those of label_class
    summary = build(folder / "list.csv", folder / "scene.csv", list_options=scene)
    assert "list.classes.json: names of label_class are not read: set --task" in str(summary)
    assert json.loads((folder / "scene.classes.json").read_text()) == names
