"""Published list formats, read with common layouts of the video files."""

import json

import pytest

from invnext_jax.dataset_prep import lists
from invnext_jax.errors import UserError

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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "contains no videos"),
        ("a.csv", "path,label_x\na.mp4,1\n", "no column 'source': add it, or give --source"),
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
        ("path,source,record\na.mp4,a,\ns-0,a,1\n", "line 3 names a record of a shard"),
        ("path,source\ngs://b/1.mp4,a\n", "line 2: gs://b/1.mp4 is remote"),
    ],
)
def test_records_and_remote_files_are_errors(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "list.csv")
