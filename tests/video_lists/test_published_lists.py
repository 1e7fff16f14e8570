"""Lists of Kinetics, HACS, Something-Something, UCF101 and HMDB51, and lists of captions."""

import json

import pytest
from list_cases import KINETICS, read, read_entries, touch

from invnext_jax.errors import UserError
from invnext_jax.video_lists import lists


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


def test_ids_of_several_files_are_not_resolved_by_their_order(tmp_path):
    """`train` and `val` have files of the same names."""
    videos = tmp_path / "v"
    touch(videos, "train/0.mp4", "val/0.mp4", "val/1.mp4", "2.mp4", "old/2.mp4", "a.avi", "a.mp4")
    (videos / "linked.mp4").symlink_to(videos / "val" / "1.mp4")
    (videos / "val" / "linked.mp4").symlink_to(videos / "val" / "1.mp4")
    (videos / "old" / "linked.mp4").symlink_to(videos / "val" / "1.mp4")
    names = ["0", "1", "2", "a", "val/0", "old/0", "linked"]
    captions, ssv2, table = tmp_path / "a.jsonl", tmp_path / "b.json", tmp_path / "c.csv"
    captions.write_text("".join(json.dumps({"video": n, "caption": "c"}) + "\n" for n in names))
    ssv2.write_text(json.dumps([{"id": name} for name in names]))
    table.write_text("video_id,other\n" + "".join(f"{name},1\n" for name in names))
    kinetics = tmp_path / "d.csv"
    kinetics.write_text("youtube_id,label\n" + "".join(f"{name},run\n" for name in names))
    for path in (captions, ssv2, table, kinetics):
        listing = read(path, videos=str(videos))
        assert [(e.path.removeprefix(f"{videos}/"), bool(e.problem)) for e in listing.entries] == [
            *(("0", True), ("val/1.mp4", False), ("2.mp4", False), ("a", True)),
            *(("val/0.mp4", False), ("old/0", True), ("linked.mp4", False)),
        ]
        problem = listing.entries[0].problem
        assert problem.startswith(f"2 video files are named 0 ('{videos}/train/0.mp4', ")
        assert problem.endswith("set --videos to the folder of one of them, or add the extension")


def test_tables_of_ids_prefer_the_folder_of_the_class(tmp_path):
    touch(tmp_path, "run/0.mp4", "jump/0.mp4", "jump/1.mp4")
    path = tmp_path / "list.csv"
    path.write_text("video_id,label\n0,run\n0,jump\n1,run\n")
    found = [entry.path for entry in read(path).entries]
    assert found == [str(tmp_path / file) for file in ("run/0.mp4", "jump/0.mp4", "jump/1.mp4")]


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


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("a.json", {"video": "1.mp4", "caption": "x"}),
        ("a.jsonl", {"video": "1.mp4", "caption": "x"}),
        ("train.json", {"id": "1", "template": "x"}),
    ],
)
def test_segments_are_not_whole_videos(name, entry, tmp_path):
    entries = [{**entry, "start": None, "tags": 1}, {**entry, "start": 0.5, "end": 1}]
    texts = ["\n".join(map(json.dumps, part)) for part in (entries, entries[:1])]
    if name.endswith(".json"):
        texts = [f"[{text.replace(chr(10), ',')}]" for text in texts]
    (tmp_path / name).write_text(texts[0])
    with pytest.raises(UserError, match="has a field 'start', which is not read: .*original_start"):
        read(tmp_path / name)
    (tmp_path / name).write_text(texts[1])
    listing = read(tmp_path / name)
    assert "video" not in entry or listing.notes == ("fields that are not read: 'tags'",)


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
