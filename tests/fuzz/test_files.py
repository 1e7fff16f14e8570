"""Lists and metadata files with any content are either read or lead to a one-sentence error."""

from fuzzing import JSON, NUMBERS, TEXTS, dump, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

from invnext_jax import json_file, sanitize
from invnext_jax.data import access_rules, video_io
from invnext_jax.data import files as files_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.dataset_prep import tfds_metadata
from invnext_jax.multihost import host_messages
from invnext_jax.video import demux, packet_headers
from invnext_jax.video_lists import lists


@given(
    st.binary(max_size=200) | st.text('{}[]",:1e-.nulltrfas\\"\x00', max_size=60) | JSON.map(dump)
)
def test_json(folder, content):
    path = folder / "any.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_or_refuse(json_file.read_object, path)
    assert found is None or isinstance(found, dict)


CELLS = st.one_of(
    TEXTS,
    NUMBERS.map(str),
    st.sampled_from(
        ["1.mp4", "s3://b/1.mp4", "http://h/1", "zip://a::s3://b", "/etc/passwd", '"', "\n", "nan"]
    ),
)
NAMES = ["path", "source", "start", "end", "record", "label_x", "label_", "youtube_id", "label"]
TABLES = st.lists(st.lists(CELLS, max_size=6), max_size=6)


def write_table(path, header, rows, separator):
    lines = [separator.join(cells) for cells in [header, *rows]]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


@given(st.lists(st.sampled_from(NAMES), max_size=6), TABLES)
def test_manifest(folder, header, rows):
    path = folder / "manifest.csv"
    write_table(path, ["path", "source", *header], rows, ",")
    found = read_or_refuse(manifest_lib.read_manifest, path)
    for row in found or ():
        if video_io.is_remote(row.path):
            assert files_lib.protocol_of(row.path) in access_rules.PROTOCOLS
            assert "::" not in row.path
        assert all(type(label) is int for label in row.labels.values())


@given(st.binary(max_size=300))
def test_manifest_of_bytes(folder, content):
    (folder / "bytes.csv").write_bytes(b"path,source,label_x\n" + content)
    read_or_refuse(manifest_lib.read_manifest, folder / "bytes.csv")


@given(
    st.sampled_from(["list.csv", "list.txt", "testlist01.txt"]),
    st.lists(st.sampled_from(NAMES), max_size=6),
    TABLES,
    st.sampled_from([",", " ", ";", "\t"]),
)
def test_list(folder, name, header, rows, separator):
    write_table(folder / name, header, rows, separator)
    read_or_refuse(lists.read_list, folder / name, lists.ListOptions())


@given(st.lists(st.dictionaries(st.sampled_from(["id", "template", "label"]), JSON)) | JSON)
def test_list_of_json(folder, content):
    (folder / "train.json").write_bytes(dump(content))
    read_or_refuse(lists.read_list, folder / "train.json", lists.ListOptions())


SPLIT = st.fixed_dictionaries(
    {"name": TEXTS | st.just("train")},
    optional={
        "shardLengths": JSON | st.lists(NUMBERS | NUMBERS.map(str), max_size=3),
        "filepathTemplate": TEXTS | st.sampled_from(["{SPLIT}", "{0}", "{SPLIT.x}", "..", "{{}}"]),
    },
)
FEATURE = JSON | st.fixed_dictionaries(
    {
        "pythonClassName": st.sampled_from(
            [tfds_metadata._CLASS_LABEL, *tfds_metadata._TENSORS, "os.x"]
        )
    },
    optional={"tensor": JSON, "classLabel": JSON},
)


@given(
    st.lists(SPLIT, max_size=2) | JSON,
    TEXTS | JSON,
    st.dictionaries(TEXTS, FEATURE, max_size=3) | JSON,
)
def test_metadata_of_tfds(folder, splits, name, features):
    info = {"fileFormat": "array_record", "name": name, "splits": splits}
    (folder / "dataset_info.json").write_bytes(dump(info))
    content = {"featuresDict": {"features": features}}
    (folder / "features.json").write_bytes(dump(content))
    found = read_or_refuse(tfds_metadata.read_metadata, folder)
    assert found is None or found.shards == []
    read_or_refuse(tfds_metadata._read_features, folder / "features.json")


@given(st.binary(max_size=200) | JSON.map(dump), st.sampled_from([b"", b"secret"]))
def test_report_of_a_process(data, secret):
    found = host_messages.parse_report(data, "nonce", secret)
    assert found is None or (type(found[0]) is int and found[0] >= 0 and not secret)


@given(st.fixed_dictionaries({name: JSON for name in ("error", "hosts", "signature")}))
def test_answer_of_process_0(answer):
    assert not host_messages.is_answer(answer, 2, "nonce", b"secret")
    host_messages.is_answer(answer, 2, "nonce", b"")


HEADER = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=30).map(lambda data: b"\1" + data),
    st.lists(st.binary(min_size=1, max_size=9)).map(lambda units: b"\0\0\1".join([b"", *units])),
)


@given(
    HEADER,
    HEADER.map(lambda data: data or b"e"),
    st.sampled_from(["h264", "hevc", "vp8", "vp9", "mpeg4", "av1"]),
)
def test_headers_of_packets(extradata, packet, codec):
    assert packet_headers.starts_with_intra(codec, extradata, packet) in (True, False)
    assert packet_headers.may_have_fields(extradata, packet) in (True, False)
    assert demux.needs_first_packet(packet) in (True, False)
    count = packet_headers.frame_counter(codec)
    assert count is None or 0 <= count(memoryview(packet)) <= 8


@given(st.text())
def test_text_for_a_screen(text):
    shown = sanitize.for_display(text)
    assert not any(character < " " and character not in "\t\n" for character in shown)
    assert sanitize.for_display(shown) == shown
