"""Lists and metadata files with any content are either read or lead to a one-sentence error."""

import json
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from invnext_jax import json_file, sanitize
from invnext_jax.data import access_rules, video_io
from invnext_jax.data import files as files_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.dataset_prep import tfds_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import imported_encoders, pretrained
from invnext_jax.evaluation.text import text_encoder
from invnext_jax.multihost import host_messages
from invnext_jax.video import demux, packet_headers
from invnext_jax.video_lists import lists
from invnext_jax.weights import export, files, import_weights, video_models

SECONDS = 20  # maximum time for one file on a busy machine
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 10**9, 1e308])
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "\x00", "\ud800", "../x", "\x1b[2J", "a/b", "1"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(function, *arguments):
    """Returns the result, or None after a `UserError`; all other errors fail the test."""
    start = time.monotonic()
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error)
        return None
    finally:
        assert time.monotonic() - start < SECONDS


def dump(value):
    return json.dumps(value).encode()


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


VALID = save({"a": np.ones((2, 3), np.float32), "b.c": np.zeros(4, np.float16)})


def read_all(path):
    return {name: tensor.read() for name, tensor in files.open_checkpoint(path).tensors.items()}


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4))
def test_safetensors_with_changed_bytes(folder, changes):
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    (folder / "a.safetensors").write_bytes(data)
    for values in (read_or_refuse(read_all, folder / "a.safetensors") or {}).values():
        assert values.dtype == np.float32


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "X"])
        | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
    },
)


@given(
    st.dictionaries(TEXTS, TENSOR | JSON, max_size=3), st.binary(max_size=64), st.integers(-9, 9)
)
def test_safetensors_header(folder, header, body, surplus):
    text = dump(header)
    length = max(0, len(text) + surplus)
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", length) + text + body)
    read_or_refuse(read_all, folder / "a.safetensors")


@given(JSON)
def test_index_of_shards(folder, content):
    source = folder / "shards"
    source.mkdir(exist_ok=True)
    (source / "model-1.safetensors").write_bytes(VALID)
    for weight_map in (content, {"a": content}):
        (source / files.INDEX_FILE).write_bytes(dump({"weight_map": weight_map}))
        read_or_refuse(files.open_checkpoint, source)


SIZES = [
    *("embed_dim", "depth", "num_heads", "patch_size", "img_size", "num_frames", "mlp_ratio"),
    *("cls_token_num", "attn_pool_num_heads", "clip_embed_dim", "tubelet_size"),
]
FIELDS = [
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "hidden_act", "mlp_ratio", "num_register_tokens"),
    *("vision_config", "rope_parameters", "layer_types", "local_attention", "use_swiglu_ffn"),
]
SMALL = st.sampled_from([0, 1, 2, 4, 8, 32, 64, 2.0, "4", True, None]) | JSON
FIELDS += ["crop_size", "frames_per_clip", "num_frames", "tubelet_size", "use_mean_pooling"]
FIELDS += ["layer_norm_eps", "vocab_size", "eos_token_id", "projection_dim", "projection_size"]
FIELDS += ["max_position_embeddings", "text_config", "text_config_dict", "image_mean", "image_std"]
TYPES = {
    "clip": ["clip_vision_model", "clip"],
    "siglip2": ["siglip_vision_model", "siglip"],
    "dinov2": ["dinov2", "dinov2_with_registers"],
    "modernbert": ["modernbert"],
}


def import_config(folder, kind, config):
    source = folder / kind
    source.mkdir(exist_ok=True)
    (source / files.SINGLE_FILE).write_bytes(VALID)
    (source / "config.json").write_bytes(dump(config))
    out = folder / "out.safetensors"
    read_or_refuse(import_weights.import_weights, kind, source, out)
    assert not out.exists()


@given(
    st.fixed_dictionaries({name: SMALL for name in SIZES[:6]}, optional={"mlp_ratio": SMALL}),
    st.dictionaries(st.sampled_from(SIZES[6:]), JSON, max_size=2),
    st.none() | JSON | st.fixed_dictionaries({"config": JSON, "parts": JSON}),
)
def test_config_of_a_published_encoder(folder, sizes, others, extra):
    config = {"model_config": sizes | others}
    config |= {} if extra is None else {"invnext_jax": extra}
    import_config(folder, "internvideo_next", config)


@given(st.sampled_from(list(TYPES)), st.data())
def test_config_of_a_teacher_or_text_model(folder, kind, data):
    config = data.draw(st.dictionaries(st.sampled_from(FIELDS), SMALL, max_size=6))
    config["model_type"] = data.draw(st.sampled_from(TYPES[kind]) | JSON)
    import_config(folder, kind, config)


def write_folder(folder, name, data, types):
    """Writes a folder with a random config of a model, and returns it."""
    source = folder / name
    source.mkdir(exist_ok=True)
    (source / files.SINGLE_FILE).write_bytes(VALID)
    config = data.draw(st.dictionaries(st.sampled_from(FIELDS), SMALL, max_size=6))
    config["model_type"] = data.draw(st.sampled_from(types) | JSON)
    for file in ("config.json", "preprocessor_config.json"):
        (source / file).write_bytes(dump(config))
    return source


@given(st.data())
def test_config_of_an_encoder_of_transformers(folder, data):
    types = list(imported_encoders.KIND_OF_MODEL_TYPE)
    assert (
        read_or_refuse(pretrained.load_frozen, write_folder(folder, "encoder", data, types)) is None
    )


@given(st.data())
def test_config_of_a_text_tower(folder, data):
    types = ["siglip", "siglip2", "siglip_text_model", "siglip2_text_model", "clip"]
    source = write_folder(folder, "text", data, [*types, "clip_text_model"])
    assert read_or_refuse(text_encoder.load_text_encoder, source) is None


@given(st.data())
def test_statistics_of_pixels(folder, data):
    source = write_folder(folder, "pixels", data, ["vjepa2"])
    found = read_or_refuse(video_models.read_pixel_stats, source)
    assert found is None or all(0 <= x <= 1 for values in found.values() for x in values)


@given(
    JSON | st.fixed_dictionaries({"format": st.just(1)}, optional={"config": JSON, "source": JSON})
)
def test_description_of_an_export(folder, about):
    path = folder / "export.safetensors"
    path.write_bytes(VALID)
    path.with_suffix(".json").write_bytes(dump(about))
    read_or_refuse(export.read_export, path)


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
