import os
import pickle  # grain pickles sources

import pytest

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import train_dataset
from invnext_jax.data.train_order import VideoFileSource
from invnext_jax.errors import UserError


def write(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text)
    return path


def test_rows_become_records(tmp_path):
    path = write(
        tmp_path,
        "path,source,start,end,label_verb,note,label_noun\n"
        'a/1.mp4,k400,,,3,"x, y",5\n'
        "/abs/2.mp4,ssv2,1.5,4,0,,-1\n",
    )
    one, two = manifest_lib.read_manifest(path)
    assert one == manifest_lib.VideoRecord(
        0, str(tmp_path / "a/1.mp4"), "k400", None, None, {"label_verb": 3, "label_noun": 5}
    )
    assert two == manifest_lib.VideoRecord(
        1, "/abs/2.mp4", "ssv2", 1.5, 4.0, {"label_verb": 0, "label_noun": -1}
    )


def test_byte_order_mark_and_crlf_are_accepted(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("\ufeffpath,source\r\nä.mp4,k400\r\n".encode())
    assert manifest_lib.read_manifest(path)[0].path == str(tmp_path / "ä.mp4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("video,source\n1.mp4,a\n", "no column 'path'"),
        ("path\n1.mp4\n", "no column 'source'"),
        ("path,source\n", "is empty"),
        ("path,source\n,a\n", "line 2: the path is empty"),
        ("path,source\na\0b,a\n", "line 2: no file can have the path"),
        ("path,source,label_x\n1.mp4,a,2\n2.mp4,a,two\n", "line 3: 'two' in column 'label_x'"),
        ("path,source,label_x\n1.mp4,a\n", "line 2 has 2 cells, but the header has 3: give each"),
        (
            "path,source,label_x\n1.mp4,a,3.5\n",
            "line 2: '3.5' in column 'label_x' is not an integer",
        ),
        ("path;source\n1.mp4;a\n", "no column 'path' .* by commas, .*prepare_data.py index"),
        (
            "path,source,note,label_x\n1.mp4,a,b, c,3\n",
            "line 2 has 5 cells, .* 4: .*commas in double quotes",
        ),
        ("path,source,start,end\n1.mp4,a,,\n2.mp4\n", "line 3 has 1 cells, but the header has 4"),
        ("path,source,note\n1.mp4,a\n", "line 2 has 2 cells, but the header has 3: give each"),
        ("path,source,start,start\n1.mp4,a,1,2\n", "the column 'start' twice: rename one"),
        ("path,source,label_a,label_a\n1.mp4,a,1,2\n", "the column 'label_a' twice: rename"),
        ("path,source, End,end\n1.mp4,a,1,2\n", "the column ' End' and 'end': rename one"),
        ("path,Path,source\n1.mp4,2.mp4,a\n", "the column 'path' and 'Path': rename one"),
        ("path,source,start,duration\n1.mp4,a,1,2\n", "'duration', .* no column 'end': add"),
        ("path,source,start,Length (s)\n1.mp4,a,1,2\n", r"'Length \(s\)', .* index, which ends"),
        ("path,source,start\n1.mp4,a,soon\n", "line 2: 'soon' in column 'start'"),
        ("path,source,start\n1.mp4,a,-2\n", "line 2: -2 in column 'start' must be finite and at"),
        ("path,source,end\n1.mp4,a,inf\n", "line 2: inf in column 'end' must be finite and at"),
        ("path,source,label_x\n1.mp4,a,-5\n", "line 2: -5 in column 'label_x' is not between -1"),
        ("path,source,start\n1.mp4,a,1_30\n", "line 2: '1_30' in column 'start' is not a number"),
        ("path,source,label_x\n1.mp4,a,1_10\n", "line 2: '1_10' in column 'label_x' is not an"),
        ("path,source,label_x\n1.mp4,a,1e2\n", "line 2: '1e2' in column 'label_x' is not an"),
        ("path,source,record\n1.mp4,a,x\n", "line 2: 'x' in column 'record'"),
        ("path,source,record\n1.mp4,a,1_0\n", "line 2: '1_0' in column 'record'"),
        ("path,source,record\n1,a,0\n1,a,-2\n", "line 3: record -2 must be"),
        ("path,source,label_x\n1.mp4,a,2147483648\n", "line 2: 2147483648 in column 'label_x'"),
        ("path,source,label_x\n1.mp4,a,-2147483649\n", "line 2: -2147483649 in column 'label_x'"),
        (f"path,source\n{'a/' * 1500}1.mp4,a\n{'a/' * 80_000},a\n", "line 3: the path .* 4,096"),
        (f"path,source\nhttps://a/{'a/' * 5000},a\n", "line 2: the path .* more than 8,192"),
        ("path,source,record\nb.mp4,a,\ns3://d/s-0,a,1\n", "line 3: shards must be on a mou"),
    ],
)
def test_errors_of_manifests_name_file_and_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        manifest_lib.read_manifest(write(tmp_path, text))
    assert "list.csv" in str(caught.value)


def test_blank_cells_nameless_columns_and_durations_of_files_are_accepted(tmp_path):
    text = "path,source,start,end,duration,,\n1.mp4,,,,9,,,\n\n2.mp4,a,1,2,9\n"
    one, two = manifest_lib.read_manifest(write(tmp_path, text))
    assert (one.source, one.start, one.end) == ("", None, None)
    assert (two.source, two.start, two.end) == ("a", 1.0, 2.0)
    manifest_lib.read_manifest(write(tmp_path, "path,source,duration\n1.mp4,a,9\n"))
    text = "path,source,start,video_length,original_duration\n1.mp4,a,1,9,9\n"
    assert manifest_lib.read_manifest(write(tmp_path, text))[0].start == 1


def test_missing_manifests_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        manifest_lib.read_manifest(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no manifest given"):
        manifest_lib.read_manifest("")
    with pytest.raises(UserError, match="contains no manifest: .* index .* --out=mine.csv"):
        manifest_lib.read_manifest(tmp_path)


def test_a_folder_with_one_manifest_names_that_manifest(tmp_path):
    path = write(tmp_path, "path,source\n1.mp4,a\n")
    (tmp_path / "list.quarantine.csv").write_text("path,reason\n")
    assert manifest_lib.find_manifests(tmp_path) == manifest_lib.find_manifests(path) == str(path)
    assert manifest_lib.find_manifests(tmp_path / "list") == str(path)
    assert manifest_lib.read_manifest(tmp_path).file == str(path)
    (tmp_path / "list.duplicates.csv").touch()
    path = path.rename(tmp_path / "kin.v2.csv")
    assert manifest_lib.find_manifests(tmp_path) == str(path)
    path = path.rename(tmp_path / "list.csv")
    (tmp_path / "val.csv").touch()
    with pytest.raises(UserError, match=r"contains several manifests: list\.csv, val\.csv"):
        manifest_lib.read_manifest(tmp_path)


def test_record_is_a_position_in_a_shard(tmp_path):
    manifest = manifest_lib.read_manifest(
        write(tmp_path, "path,source,record\ns-0,a,0\ns-0,a,7\nb.mp4,a,\n")
    )
    assert [row.record for row in manifest] == [0, 7, None]
    folder = str(tmp_path)
    assert [row.name for row in manifest] == [f"{folder}/{n}" for n in ("s-0#0", "s-0#7", "b.mp4")]
    assert manifest.paths[0] is manifest.paths[1]


def test_a_file_that_is_given_twice_is_refused_and_repeated_rows_are_counted(tmp_path):
    header = "path,source,start,end,record\n"
    path = write(tmp_path, header + "a,x,,,\na,x,,,\na,x,1,,\nb,x,,,0\nb,x,,,1\nb,y,,,1\na,x,,,\n")
    assert train_dataset.count_repeats(manifest_lib.read_manifest(path)) == 3
    for names in (f"{path},{path}", f"{path},{str(path).removesuffix('.csv')}"):
        with pytest.raises(UserError, match="is given twice: remove one"):
            manifest_lib.read_manifest(names)
    world = "world:simple/train?videos=9"
    assert train_dataset.count_repeats(manifest_lib.read_manifest(world)) == 0
    joined = manifest_lib.read_manifest(f"{world},world:simple/train?videos=4")
    assert train_dataset.count_repeats(joined) == 4


def test_source_has_random_access_and_can_be_pickled(tmp_path):
    path = write(tmp_path, "path,source\n" + "".join(f"{i}.mp4,a\n" for i in range(5)))
    source = VideoFileSource(manifest_lib.read_manifest(path))
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 5
    assert [copy[i].index for i in (4, 0, 2)] == [4, 0, 2]
    assert str(tmp_path) not in repr(source)  # repr is part of a checkpoint
    with pytest.raises(IndexError):
        source[5]


@pytest.mark.parametrize(
    ("names", "digest"),
    [  # the first one is in tests/fixtures/checkpoint_v2, the others in existing checkpoints
        ("a.csv", "56ce9c68b7972d4f140b606d1e524f74ce33f0f2db301349c6b896d9122c9902"),
        ("a.csv, b.csv", "5da7048edcaeee1a86c6f982d1cfec34036a138cfcbbc18773c41dc59dfa682b"),
        ("c, d.csv", "c86c9ee492d0a61d7d81dd54a29a3da0051f83974996cf65d773286272cc79ba"),
        (
            "a.csv,file://{}/b.csv, world:simple?videos=3",
            "d7a7aa24b14744a3fc9c5fb5760ff099c1064ab6d2e9d94c727a37a3fcba0594",
        ),
        (
            "world:simple/train?videos=4",
            "549e3ca23112371005ed558d0b4bc6ef8f00c427aaf0dbcce739b7ecb6370d75",
        ),
    ],
)
def test_hashes_equal_those_in_existing_checkpoints(names, digest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("path,source\na.mp4,toy\n")
    (tmp_path / "b.csv").write_text("path,source\nb.mp4,toy\n")
    (tmp_path / "c, d.csv").write_text("path,source\n")
    assert manifest_lib.hash_manifests(names.format(tmp_path)) == digest


def test_blank_and_float_labels_long_cells_and_any_names_are_read(tmp_path):
    text = f"path,source,label_x,note\n1.mp4,a,3.0,{'x' * 140_000}\n2.mp4,a,,\n\udcff.mp4,a,nan,\n"
    (tmp_path / "list.csv").write_bytes(text.encode(errors="surrogateescape"))
    manifest = manifest_lib.read_manifest(tmp_path / "list.csv")
    assert manifest.labels["label_x"].tolist() == [3, -1, -1]
    assert manifest.paths[2] == f"{tmp_path}/\udcff.mp4"
    (tmp_path / "list.csv").write_bytes(b"path,source\n1.mp4,caf\xe9\n")
    with pytest.raises(UserError, match=r"line 2: the source 'caf.udce9' is not UTF-8: save"):
        manifest_lib.read_manifest(tmp_path / "list.csv")


def test_a_pipe_or_a_device_is_not_read_as_a_manifest(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv"):
        with pytest.raises(UserError, match=f"{name} cannot be read: .*Not a regular file"):
            manifest_lib.read_manifest(tmp_path / name)


def test_a_manifest_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_lib.csv_text.read_lines, "__defaults__", (100,))
    path = write(tmp_path, "path,source\n" + "a.mp4,a\n" * 20)
    with pytest.raises(UserError, match="cannot be read: it has more than 100 characters"):
        manifest_lib.read_manifest(str(path))


def test_a_manifest_with_an_endless_line_is_refused(tmp_path):
    path = write(tmp_path, "path,source\n")
    os.truncate(path, 2**40)  # a sparse file; reading all of it would fill the memory
    with pytest.raises(UserError, match="cannot be read: it has a line of more than 16777216"):
        manifest_lib.read_manifest(str(path))


def test_only_files_that_may_be_manifests_are_hashed(tmp_path):
    (tmp_path / "proc.csv").symlink_to("/proc/self/pagemap")  # regular, but has 256 GiB
    with pytest.raises(OSError, match="empty file"):
        manifest_lib.hash_manifests(str(tmp_path / "proc.csv"))
    path = write(tmp_path, "path,source\n")
    os.truncate(path, 2**35)
    with pytest.raises(OSError, match="larger than 17179869184 bytes"):
        manifest_lib.hash_manifests(str(path))
