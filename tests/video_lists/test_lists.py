"""Folders, manifests, tables and lines of path and label are read as they are meant."""

import os
import tracemalloc

import pytest
from list_cases import read, read_entries, touch

from invnext_jax.errors import UserError
from invnext_jax.video_lists import lists


def test_folder_is_searched_recursively(tmp_path):
    root = tmp_path / "mine"
    touch(root, "b.mp4", "a/d.WEBM", "a/c/e.mkv", "a/note.txt", "mp4")
    assert read_entries(root, root) == [
        (name, "mine", None, None) for name in ("a/c/e.mkv", "a/d.WEBM", "b.mp4")
    ]
    assert {entry.source for entry in read(root, source="k400").entries} == {"k400"}


def test_own_manifest(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(
        'path,source,start,end,label_x,note\na.mp4,k400,,,3,"x, y"\n/b.mp4,,1.5,4,-1,\n'
    )
    assert read_entries(path, tmp_path) == [
        ("a.mp4", "k400", None, None, 3),
        ("/b.mp4", "", 1.5, 4.0, -1),
    ]
    path.write_text("path\na.mp4\n")
    assert read_entries(path, "/v", videos=tmp_path.as_posix(), source="s")[0][1] == "s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b/1.mp4 0\nc/2.avi 7\n", [("a b/1.mp4", 0), ("c/2.avi", 7)]),  # VideoMAE, MMAction
        ("a b/1.mp4,0\n/c/2.avi, 7\n", [("a b/1.mp4", 0), ("/c/2.avi", 7)]),  # VideoMAE v2
        ("1.mp4,0,-1\n2.mp4,0,-1\n", [("1.mp4",), ("2.mp4",)]),  # unlabeled videos of VideoMAE v2
        ("1.mp4 -1\n\n2.mp4\t4", [("1.mp4", -1), ("2.mp4", 4)]),
        ("1.mp4\n2 3.mp4\n", [("1.mp4",), ("2 3.mp4",)]),
    ],
)
@pytest.mark.parametrize("name", ["train.txt", "train.csv"])
def test_lines_of_path_and_label(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    entries = read_entries(tmp_path / name, tmp_path)
    assert [(row[0], *row[4:]) for row in entries] == expected
    assert {row[1:4] for row in entries} == {("train", None, None)}


@pytest.mark.parametrize(
    ("text", "labels", "notes"),
    [
        ("path,source,label\na.mp4,s,3\nb.mp4,s,1\n", [3, 1], "'label' is read as label_class"),
        ("path;source;label_class\na.mp4;s;3\nb.mp4;s;1\n", [3, 1], ""),
        ("path\tsource\tlabel_class\na.mp4\ts\t3\nb.mp4\ts\t1\n", [3, 1], ""),
        ("path|source|label_class\r\na.mp4|s|3\r\nb.mp4|s|1\r\n", [3, 1], ""),
        ("# mine\n\nvideo,label\na.mp4,3\nb.mp4,1\n", [3, 1], "'label' is read"),
        ("#Filename;Class\na.mp4;run\nb.mp4;jump\n", [1, 0], "'Class' is read"),
        ("video_id,category\na,run\nb,jump\n", [1, 0], "'category' is read"),
        ("path,source,label_class\na.mp4,s,3.0\nb.mp4,s,\n", [3, -1], ""),
        ("file,label\na.mp4,nan\nb.mp4, 1.0\n", [-1, 1], "'label' is read"),
        (
            "path,source,caption,label_class\na.mp4,s,x,3\nb.mp4,s,y,1\n",
            [3, 1],
            "not read: caption",
        ),
        ("path,source,label,label_class\na.mp4,s,7,3\nb.mp4,s,7,1\n", [3, 1], "not read: label"),
        ("sep=;\nPath; Source; label_class\na.mp4; s; 3\n b.mp4; s; 1\n", [3, 1], ""),
        ("# mine\na.mp4 3\nb.mp4 1\n", [3, 1], ""),
        ("a.mp4;3\nb.mp4;1\n", [3, 1], ""),
        ("a.mp4 3.0\nb.mp4 1.0\n", [3, 1], ""),
        ("a.mp4 run\nb.mp4,jump\n", [1, 0], ""),
        ("a.mp4,run,3,0\nb.mp4,jump,2,1\n", [1, 0], ""),  # Moments in Time: votes for and against
    ],
)
def test_tables_and_lines_are_read_as_they_are_meant(text, labels, notes, tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_bytes(text.encode())
    videos = read(tmp_path / "list.csv")
    assert [entry.path for entry in videos.entries] == [
        str(tmp_path / n) for n in ("a.mp4", "b.mp4")
    ]
    assert [entry.labels for entry in videos.entries] == [{"label_class": n} for n in labels]
    assert videos.classes == ({"jump": 0, "run": 1} if "jump" in text else None)
    assert notes in " ".join(videos.notes) and bool(notes) == bool(videos.notes)


def test_long_captions_and_text_in_utf_16_are_read(tmp_path):
    text = f"path,source,caption,label_x\na.mp4,s,{'x' * 140_000},3\n"
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "list.csv").write_bytes(text.encode(encoding))
        assert read(tmp_path / "list.csv").entries[0].labels == {"label_x": 3}


def test_a_duration_next_to_a_start_gives_the_end(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("path,source,start,duration\na.mp4,s,2,5\nb.mp4,s,,3\nc.mp4,s,1,\n")
    found = read(path)
    assert [(e.start, e.end) for e in found.entries] == [(2, 7), (None, 3), (1, None)]
    assert "clips end at 'start' + 'duration', in seconds" in found.notes
    path.write_text("path,source,start,end,duration\na.mp4,s,2,4,60\n")
    assert [(e.start, e.end) for e in read(path).entries] == [(2, 4)]


def test_split_column_selects_rows(tmp_path):
    (tmp_path / "l.csv").write_text("path,source,split\na.mp4,s,train\nb.mp4,s,val\n")
    names = lambda split: [e.path[-5:] for e in read(tmp_path / "l.csv", split=split).entries]  # noqa: E731
    assert names("val") == ["b.mp4"] and names("all") == ["a.mp4", "b.mp4"]
    with pytest.raises(UserError, match="select one with --split"):
        names("test")


def test_names_in_other_encodings_are_found(tmp_path):
    composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
    latin = b"na\xefve.mp4"
    (tmp_path / "d").mkdir()
    touch(tmp_path / "d", decomposed, os.fsdecode(latin), "dir/x.mp4")
    for text in (
        f"d/{composed}\nd/na\u00efve.mp4\nd\\dir\\x.mp4\n".encode(),
        f"d/{decomposed}\n".encode() + b"d/" + latin + b"\nd/dir/x.mp4\n",
    ):
        (tmp_path / "list.txt").write_bytes(text)
        files = [os.fsencode(e.path) for e in read(tmp_path / "list.txt").entries]
        assert all(os.path.exists(file) for file in files)
        assert files[1].endswith(latin)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.mp4 , 3", ("a.mp4", "3")),
        ("a 1 b.mp4  -1", ("a 1 b.mp4", "-1")),
        ("a.mp4;2.00", ("a.mp4", "2.00")),
        ("a.mp4,,1", ("a.mp4,", "1")),
        ("a1", None),
        ("a --1", None),
        ("1", None),
    ],
)
def test_the_number_at_the_end_of_a_line_is_split_off(line, expected):
    assert lists._split_number(line) == expected


def test_wide_tables_need_little_memory(tmp_path):
    header = ",".join(["path", "source", *(f"c{number}" for number in range(900))])
    (tmp_path / "l.csv").write_text(header + f"\na.mp4{',' * 901}" * 2000)
    tracemalloc.start()
    found = read(tmp_path / "l.csv", source="s")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.entries) == 2000 and peak < 2**25, peak  # dicts would need 2**26 bytes
