"""Reads published list formats with common layouts of the video files."""

import json
import os
import tracemalloc

import pytest

from invnext_jax.data import columns as columns_lib
from invnext_jax.errors import UserError
from invnext_jax.video_lists import lists

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
playing guitar,---0dWlqevI,19,29,train,0
abseiling,-3B32lodo2M,59,69,train,1
abseiling,0347ZoDXyP0,95,105,train,0
zumba,gone0000000,1,11,train,0
"""


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def read(path, **options):
    return lists.read_list(path, lists.ListOptions(**options))


def read_entries(path, root, **options):
    """Returns (path below root, source, start, end, labels) of each entry that has a file."""
    return [
        (e.path.removeprefix(f"{root}/"), e.source, e.start, e.end, *e.labels.values())
        for e in read(path, **options).entries
        if not e.problem
    ]


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


def test_kinetics_finds_trimmed_and_untrimmed_files(tmp_path):
    path, videos = tmp_path / "train.csv", tmp_path / "v"
    path.write_text(KINETICS)
    touch(
        videos,
        "playing_guitar/---0dWlqevI_000019_000029.mp4",
        "abseiling/-3B32lodo2M.webm",
        "other/0347ZoDXyP0_95_105.mkv",
        "abseiling/0347ZoDXyP0_95_105.mkv",
    )
    assert read_entries(path, videos, videos=str(videos)) == [
        ("playing_guitar/---0dWlqevI_000019_000029.mp4", "kinetics", None, None, 1),
        ("abseiling/-3B32lodo2M.webm", "kinetics", 59.0, 69.0, 0),
        ("abseiling/0347ZoDXyP0_95_105.mkv", "kinetics", None, None, 0),
    ]
    listing = read(path, videos=str(videos), source="k400", task="action")
    assert listing.classes == {"abseiling": 0, "playing guitar": 1, "zumba": 2}
    assert listing.entries[0].labels == {"label_action": 1}
    assert [entry.may_be_trimmed for entry in listing.entries] == [False, True, False, False]
    assert "gone0000000_000001_000011 or" in listing.entries[3].problem


def test_hacs_clips(tmp_path):
    path = tmp_path / "HACS_clips_v1.1.1.csv"
    path.write_text(
        "classname,youtube_id,subset,start,end,label\nArchery,a2X2,training,15.5,17.5,1\n"
        "Archery,NUdj,training,77.5,79.5,-1\nYoga,0O_q,validation,2.0,4.0,1\n"
    )
    touch(tmp_path, "v_a2X2.mp4", "NUdj.mp4", "0O_q_000002_000004.mp4")
    assert read_entries(path, tmp_path, split="training") == [
        ("v_a2X2.mp4", "hacs", 15.5, 17.5, 0),
        ("NUdj.mp4", "hacs", 77.5, 79.5, -1),
    ]
    assert read_entries(path, tmp_path, split="all")[2] == (
        *("0O_q_000002_000004.mp4", "hacs", None, None),
        1,
    )


def test_kinetics_without_labels(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("youtube_id,time_start,time_end,split\nabc,1,11,test\n")
    touch(tmp_path, "abc.mp4")
    assert read_entries(path, tmp_path) == [("abc.mp4", "kinetics", 1.0, 11.0)]


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


SSV2 = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {
        "id": "42326",
        "label": "spreading margarine onto bread",
        "template": "Spreading [something] onto [something]",
        "placeholders": ["margarine", "bread"],
    },
]
SSV2_LABELS = {
    "Approaching something with your camera": "0",
    "Holding something next to something": "12",
    "Spreading something onto something": "140",
}


def test_something_something(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(SSV2_LABELS))
    path = tmp_path / "train.json"
    path.write_text(json.dumps(SSV2))
    touch(tmp_path / "20bn", "78687.webm")
    listing = read(path, videos=str(tmp_path / "20bn"))
    one, two = listing.entries
    assert one == lists.VideoEntry(
        str(tmp_path / "20bn/78687.webm"), "ssv2", labels={"label_class": 12}
    )
    assert two.labels == {"label_class": 140} and "no video file is named 42326" in two.problem
    assert listing.classes["Spreading something onto something"] == 140
    path.write_text(json.dumps([{"id": "78687"}]))  # the format of test.json
    assert read(path, videos=str(tmp_path / "20bn")).entries[0].labels == {}


CAPTIONS = [
    {"video": "a/1.mp4", "caption": "a dog runs"},
    {"video": "2", "caption": ["a cat", "a cat sits"]},
    {"video": "a/1.mp4", "caption": "an animal runs"},
    {"video": "3", "caption": "nothing"},
]


@pytest.mark.parametrize("name", ["test.json", "test.jsonl"])
def test_list_of_captions_has_each_video_once(name, tmp_path):
    lines = map(json.dumps, CAPTIONS)
    path = tmp_path / name
    path.write_text(json.dumps(CAPTIONS) if name == "test.json" else "\n".join(lines) + "\n")
    touch(tmp_path / "videos" / "a", "1.mp4")
    touch(tmp_path / "videos" / "b", "2.webm")
    listing = read(path, videos=str(tmp_path / "videos"))
    assert listing.entries[:2] == [
        lists.VideoEntry(str(tmp_path / "videos" / file), "test")
        for file in ("a/1.mp4", "b/2.webm")
    ]
    assert [entry.problem for entry in listing.entries] == ["", "", "no video file is named 3"]
    assert listing.notes == ("1 further captions of the same videos",)


@pytest.mark.parametrize("video", ["3", '""', '"a\\u0000.mp4"', '"\\ud800.mp4"', "null"])
def test_entry_of_captions_without_a_file_name_is_refused(video, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f'[{{"video": "b.mp4"}}, {{"video": {video}}}]')
    with pytest.raises(UserError, match='entry 2: "video" must be the name of a file'):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '[{"id": "\\ud800"}]',
        '[{"id": "1", "template": "\\ud800"}]',
        '[{"id": 1' + "0" * 5000,
    ],
)
def test_impossible_values_of_something_something_are_refused(text, tmp_path):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError, match="does not have the format of Something-Something"):
        read(tmp_path / "train.json")


@pytest.mark.parametrize("text", ['{"a": null}', '{"a": Infinity}', '{"a": [1]}', "[" * 100_000])
def test_impossible_class_ids_are_refused(text, tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="must map names to integers"):
        columns_lib.read_class_names(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "contains no videos"),
        ("a.csv", "path,label_x\na.mp4,1\n", "no column 'source': add it, or set --source"),
        (
            "a.csv",
            "path,source,label_x\na.mp4,s,one\n",
            "line 2, label_x: 'one' must be an integer",
        ),
        ("a.csv", "path,source,start\na.mp4,s,soon\n", "line 2, start: 'soon' must be a number"),
        ("a.csv", "path,source\n,s\n", "line 2: the path is empty"),
        ("a.csv", "label,youtube_id,time_start,time_end\nx,id,1,b\n", "line 2, time_end: 'b'"),
        ("a.txt", "folder 120 3\n", "line 1: 'folder 120' has no video extension"),
        ("a.json", '{"78687": 3}', "does not have the format of Something-Something"),
        ("a.json", "[", "does not have the format of Something-Something"),
    ],
)
def test_error_of_an_invalid_list_names_the_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_lists_are_errors(tmp_path):
    with pytest.raises(UserError, match="the folder or list .* does not exist"):
        read(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"contains no videos \(\.mp4"):
        read(tmp_path)
    with pytest.raises(
        UserError, match="the folder '/nowhere' of videos does not exist: set --videos"
    ):
        read(tmp_path, videos="/nowhere")
    (tmp_path / "a.csv").write_text(KINETICS)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "a.csv", classes="/nowhere.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,source,record\na.mp4,a,\ns-0,a,1\n", "line 3 is a record of a shard"),
        ("path,source\ngs://b/1.mp4,a\n", "line 2: gs://b/1.mp4 is remote"),
    ],
)
def test_records_and_remote_files_are_errors(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "list.csv")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,source,label\na.mp4,s,3\nb.mp4,s,run\n",
            "line 2, label: '3' is a number, but 'run'",
        ),
        ("a.mp4 3\nb.mp4 run\n", "line 1: '3' is a number, but 'run' is a class name"),
        (
            "path,source,label_x\na.mp4,s,3.5\n",
            "line 2, label_x: '3.5' must be an integer, or blank",
        ),
        ("path,source,label_x\na.mp4,s,2147483648\n", "line 2, label_x: 2147483648 exceeds 32"),
        ("a.mp4 -2147483649\n", "line 1: -2147483649 exceeds 32 bits"),
        (
            "path,source,note,label_x\na.mp4,s,one, two,3\n",
            "line 2 has 5 cells, .* in double quotes",
        ),
        ("path,label,label\na.mp4,1,2\n", "has the column 'label' twice"),
        (
            "path,source,split\na.mp4,s,train\nb.mp4,s,val\n",
            "splits 'train', 'val' .* with --split",
        ),
        ("a.mp4,run,fast\n", "line 1: 'a.mp4,run,fast' has no video extension; .* a header"),
        ("clip title;class\na;1\n", "line 1: .* a header with the columns path, source, label"),
        ("a.mp4\0", "is not a text file"),
    ],
)
def test_ambiguous_lists_name_line_column_and_cure(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "list.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names", ["begin,finish", "t0,t1", "start_frame,end_frame", "from,to", "start,t1", "onset,end"]
)
@pytest.mark.parametrize("path", ["path", "youtube_id"])
def test_ranges_with_names_that_are_not_read_are_refused(names, path, tmp_path):
    (tmp_path / "a.csv").write_text(f"{path},label,{names}\na.mp4,c,2,5\n")
    with pytest.raises(UserError, match="which is not read: rename it to '(start|end)' and give"):
        read(tmp_path / "a.csv", source="s")


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,source\na.mp4,s\n"),
        ("a.txt", "a.mp4 1\n"),
        ("a.csv", "label,youtube_id\nx,a\n"),
        ("a.json", '[{"id": "a"}]'),
        ("a.txt", "YoYo/v_YoYo_g01_c01.avi\n"),
        ("", ""),
    ],
)
def test_a_split_of_a_list_without_splits_is_refused(name, text, tmp_path):
    touch(tmp_path, "a.mp4")
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="--split=val: .* has no splits; remove the flag"):
        read(tmp_path / name, split="val")
    assert len(read(tmp_path / name, split="all").entries) == 1


def test_hmdb51_split_files(tmp_path):
    lists_folder, root = tmp_path / "splits", tmp_path / "hmdb51"
    touch(root, *(f"{c}/{c[0]}{i}.avi" for c in ("run", "brush_hair") for i in range(3)))
    lists_folder.mkdir()
    for name in ("run", "brush_hair"):
        for fold, numbers in ((1, (1, 2, 0)), (2, (2, 1, 0))):
            rows = [f"{name[0]}{i}.avi {n} " for i, n in enumerate(numbers)]
            (lists_folder / f"{name}_test_split{fold}.txt").write_text("\n".join(rows) + "\n")
    found = {
        (split, fold): [
            (entry.path.removeprefix(f"{root}/"), entry.labels["label_class"])
            for entry in read(lists_folder, videos=str(root), split=split, fold=fold).entries
        ]
        for split in ("train", "test")
        for fold in (1, 2)
    }
    first, second = (
        [("brush_hair/b0.avi", 0), ("run/r0.avi", 1)],
        [("brush_hair/b1.avi", 0), ("run/r1.avi", 1)],
    )
    assert found == {
        ("train", 1): first,
        ("test", 2): first,
        ("test", 1): second,
        ("train", 2): second,
    }
    one = read(lists_folder / "run_test_split1.txt", videos=str(root), split="train")
    assert [entry.labels for entry in one.entries] == [{"label_class": 1}]  # the id of the folder
    for path in (lists_folder, lists_folder / "run_test_split1.txt"):
        with pytest.raises(UserError, match="training and test videos of HMDB51: set --split"):
            read(path, videos=str(root))
    with pytest.raises(UserError, match="no files for split 3 of HMDB51: set --fold to another"):
        read(lists_folder, split="train", fold=3)


@pytest.mark.parametrize("with_index", [True, False])
def test_ucf101_lists_number_the_folders(tmp_path, with_index):
    names = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    train = [f"{c}/v_{c}_g08_c01.avi {n}" for n, c in enumerate(names, start=1)]
    test = [f"{c}/v_{c}_g01_c02.avi" for c in (names if not with_index else names[1:])]
    train, test = (
        [line.replace("v_Handstand", "v_HandStand") for line in lines]  # as in the file names
        for lines in (train, test)
    )
    (tmp_path / "trainlist01.txt").write_text("\r\n".join(train) + "\r\n")
    (tmp_path / "testlist01.txt").write_text("\n".join(test) + "\n")
    if with_index:  # then a split may lack a class
        index = "".join(f"{n} {c}\n" for n, c in enumerate(names, start=1))
        (tmp_path / "classInd.txt").write_text(index)
    ids = {name: number for number, name in enumerate(names)}
    for name, count in (("trainlist01.txt", 3), ("testlist01.txt", len(test))):
        videos = read(tmp_path / name)
        found = [(e.path.split("/")[-2], e.labels["label_class"]) for e in videos.entries]
        assert found == list(ids.items())[-count:] and videos.classes == ids
    (tmp_path / "trainlist01.txt").write_text(f"{train[0]}\n{train[0][:-1]}7\n")
    with pytest.raises(UserError, match="the class 'ApplyEyeMakeup' has the numbers 1 and 7"):
        read(tmp_path / "trainlist01.txt")


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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a" + " " * 300_000 + "b\n", "has no video extension"),
        ("l.txt", "a 1" + " 1" * 300_000 + "b\n", "has no video extension"),
        ("x_test_split1.txt", "q 1\na" + " " * 300_000 + "b\n", "must be a name and 0, 1 or 2"),
        ("l.csv", "path," + ",".join(f"c{n}" for n in range(200_000)) + "\na.mp4\n", "columns"),
    ],
)
def test_long_lines_are_read_in_linear_time(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, split="train" if "split" in name else "", source="s")


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


@pytest.mark.parametrize("end", ["inf", "1e999", "-inf"])
def test_infinite_times_of_kinetics_are_refused(end, tmp_path):
    (tmp_path / "l.csv").write_text(f"label,youtube_id,time_start,time_end\na,x,1,{end}\n")
    with pytest.raises(UserError, match="line 2, time_end: .* must be a number of seconds"):
        read(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("label,youtube_id,time_start,time_end\na,x,1,nan\n")
    assert read(tmp_path / "l.csv").entries[0].end is None


def test_long_numbers_of_ucf101_classes_are_refused(tmp_path):
    (tmp_path / "trainlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi 1\n")
    (tmp_path / "classInd.txt").write_text("9" * 5000 + " YoYo\n")
    with pytest.raises(UserError, match=r"classInd\.txt, line 1: .* must be a number and a class"):
        read(tmp_path / "trainlist01.txt")


def test_class_names_must_be_characters(tmp_path):
    (tmp_path / "l.txt").write_text("a.mp4 zumba\n")
    (tmp_path / "classes.json").write_text('{"\\ud800": 0, "zumba": 1}')
    with pytest.raises(UserError, match="cannot be read: a name contains a surrogate"):
        read(tmp_path / "l.txt", classes=str(tmp_path / "classes.json"))


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_only_regular_files_are_read_as_lists(kind, tmp_path):
    path = tmp_path / "x_test_split1.txt"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kind)
    with pytest.raises(UserError, match="cannot be read: Not a regular file"):
        read(tmp_path, split="train")


def test_missing_cells_need_no_memory(tmp_path):
    header = ",".join(["path", "source", *(f"c{number}" for number in range(900))])
    (tmp_path / "l.csv").write_text(header + "\na.mp4" * 2000)
    tracemalloc.start()
    found = read(tmp_path / "l.csv", source="s")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.entries) == 2000 and peak < 2**23, peak  # dicts would need 2**25 bytes
