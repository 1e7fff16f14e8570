"""Lists that are refused: the error names the line, the column and what to change."""

import os

import pytest
from list_cases import KINETICS, read, touch

from invnext_jax.errors import UserError
from invnext_jax.video_lists import text_tables


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
        (
            "a.csv",
            "path,source,start,end\na.mp4,s,,\nb.mp4\n",
            "line 3 has 1 cells, .* has 4: give",
        ),
        ("a.csv", "path;source;label\na.mp4;s\n", "line 2 has 2 cells, but the header has 3: give"),
        ("a.csv", "path,source,start,start\na.mp4,s,1,2\n", "the column 'start' twice: rename one"),
        ("a.csv", "path,source,start,Start\na.mp4,s,1,2\n", "the column 'start' and 'Start': ren"),
        ("a.csv", "path,source,start,length\na.mp4,s,1,2\n", "'length', .* and no column 'end'"),
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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,source\n{}.mp4,s\n", "line 2: the path .* has .* bytes, more than 4,096"),
        ("a.txt", "{}.mp4 run\n", "line 1: the path .* has .* bytes, more than 4,096"),
        ("a.json", '[{{"video": "{}.mp4", "caption": "x"}}]', 'entry 1: "video" must be .* 4096'),
        ("a.json", '[{{"id": "{}"}}]', 'entry 1: "id" must be the name of a file'),
    ],
)
def test_long_paths_are_refused(name, text, message, tmp_path):
    marks = "a" + "\u0315\u0300" * 1_000_000  # normalizing this name would take hours
    (tmp_path / name).write_text(text.format(marks))
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_ids_with_nul_characters_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('[{"id": "a"}, {"id": "b\\u0000c"}]')
    with pytest.raises(UserError, match='entry 2: "id" must be the name of a file'):
        read(tmp_path / "a.json")


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
        (
            "path,source,label_x\na.mp4,s,2147483648\n",
            "line 2, label_x: 2147483648 is not between -1",
        ),
        ("a.mp4 -2147483649\n", "line 1: -2147483649 is not between -1"),
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


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_only_regular_files_are_read_as_lists(kind, tmp_path):
    path = tmp_path / "x_test_split1.txt"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kind)
    with pytest.raises(UserError, match="cannot be read: Not a regular file"):
        read(tmp_path, split="train")


@pytest.mark.parametrize(
    ("name", "limit", "change"),
    [
        ("train.json", text_tables.MAX_JSON_BYTES, "write one object per line"),
        ("train.jsonl", text_tables.MAX_JSON_LINES_BYTES, "split it"),
        ("train.csv", text_tables.MAX_BYTES, "split it"),
    ],
)
def test_large_lists_are_refused_before_they_are_read(name, limit, change, tmp_path):
    with open(tmp_path / name, "wb") as file:
        file.truncate(limit + 1)  # sparse
    with pytest.raises(UserError, match=f"has more than {limit} bytes: {change}"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "text", ['{"video": "a.mp4", "x": "' + "x" * 2**22 + '"}', "[\n{}]", "", '{"id": 1}', "1"]
)
def test_lines_of_json_are_short_objects_with_a_video(text, tmp_path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match='must have one JSON object with "video" per line'):
        read(tmp_path / "a.jsonl")
