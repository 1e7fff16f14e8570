"""Reading TFDS metadata runs no code, and its sizes are compared with the shards."""

import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from invnext_jax.data import shards
from invnext_jax.dataset_prep import tfds_metadata
from invnext_jax.dataset_prep.tfds_metadata import Feature
from invnext_jax.errors import UserError

# TFDS calls a deprecated protobuf function.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
TEXT = "tensorflow_datasets.core.features.text_feature.Text"
FEATURES = {"featuresDict": {"features": {"video": {"pythonClassName": TEXT, "text": {}}}}}
INFO = {
    "name": "clips",
    "version": "1.0.0",
    "fileFormat": "array_record",
    "splits": [{"name": "train", "shardLengths": ["2"]}],
}


@pytest.fixture
def folder(tmp_path):
    """A folder with one shard of two records."""
    path = tmp_path / "clips-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"a")
    writer.write(b"b")
    writer.close()
    write(tmp_path)
    return tmp_path


def write(folder, info=None, features=None):
    (folder / "dataset_info.json").write_text(json.dumps(INFO | (info or {})))
    (folder / "features.json").write_text(json.dumps(features or FEATURES))


def change_split(**fields):
    return {"splits": [{**INFO["splits"][0], **fields}]}


def fail_if_opened(path):
    pytest.fail(f"{path} was opened in this process")


def test_only_a_worker_process_opens_shards(folder, monkeypatch):
    """Footers can have any size after decompression, and only workers have a limit of memory."""
    monkeypatch.setattr(shards, "_new_reader", fail_if_opened)
    assert [length for _, length in tfds_metadata.read_metadata(folder).shards] == [2]


def test_shards_with_the_same_file_are_refused(folder):
    name = "clips-train.array_record-00000-of-00001"
    write(folder, change_split(shardLengths=["2"] * 1000, filepathTemplate=name))
    with pytest.raises(UserError, match="lists the shard .* twice, .*: set filepathTemplate"):
        tfds_metadata.read_metadata(folder, "train")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_a_shard_are_the_same_shard(link, folder):
    name = "clips-train.array_record-0000{}-of-00002"
    (folder / "clips-train.array_record-00000-of-00001").rename(folder / name.format(0))
    link(folder / name.format(0), folder / name.format(1))
    write(folder, change_split(shardLengths=["2", "2"]))
    with pytest.raises(UserError, match="lists the shard .*00001-of-00002 twice, perhaps by a li"):
        tfds_metadata.read_metadata(folder, "train")


@pytest.mark.parametrize("legacy", [False, True])
def test_metadata_equals_that_of_tfds(folder, legacy):
    kinds = {
        "video": tfds.features.Text(),
        "action": tfds.features.ClassLabel(num_classes=2),
        "count": tfds.features.Scalar(np.uint8),
        "vector": tfds.features.Tensor(shape=(2,), dtype=np.int64),
        "weight": tfds.features.Scalar(np.float32),
    }
    features = tfds.features.FeaturesDict(kinds)
    (folder / "features.json").unlink()
    if legacy:
        tensor = {"dtype": "uint8", "shape": [], "encoding": "none"}
        content = {
            name: {"type": type(k).__module__ + ".X", "content": {}} for name, k in kinds.items()
        }
        content["action"]["type"] = (
            "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
        )
        content["count"] = {"type": tfds_metadata._TENSORS[0], "content": tensor}
        (folder / "features.json").write_text(json.dumps({"type": "F", "content": content}))
    else:
        features.save_config(folder)
    found = tfds_metadata.read_metadata(folder)
    assert (found.name, found.split) == ("clips", "train")
    info = tfds.builder_from_directory(folder).info if not legacy else None
    paths = info.splits["train"].filepaths if info else [p for p, _ in found.shards]
    assert found.shards == [(str(path), 2) for path in paths]
    expected = dict.fromkeys(kinds, Feature(False, False))
    expected |= {"action": Feature(True, False), "count": Feature(False, True)}
    assert found.features == expected


def test_named_module_is_not_imported(folder, monkeypatch):
    (folder / "labels_of_mine.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    entry = {"pythonClassName": "labels_of_mine.Labels", "pythonClass": {}}
    write(folder, features={"featuresDict": {"features": {"video": entry}}})
    assert tfds_metadata.read_metadata(folder).features == {"video": Feature(False, False)}
    assert "labels_of_mine" not in sys.modules


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (change_split(shardLengths=["300000000"]), "has 2 records, but .* lists 300000000"),
        (change_split(shardLengths=["-2"]), "shard length '-2'"),
        (change_split(shardLengths=["9" * 5000]), "shard length '9999"),
        (change_split(shardLengths=[True]), "shard length 'True'"),
        (change_split(shardLengths={}), "field shardLengths that is not a list"),
        (change_split(shardLengths=["2", "2"]), "lacks the shard clips-train.array_record-00000-"),
        (change_split(shardLengths=["1"] * 100_001), "more than 100000 shards"),
        (change_split(filepathTemplate="../../etc/{SPLIT}"), "not the name of a file"),
        (change_split(filepathTemplate="{X!r}"), "not the name of a file"),
        (change_split(filepathTemplate="{SPLIT.__class__}"), "not the name of a file"),
        (change_split(filepathTemplate="x" * 999), "not the name of a file"),
        ({"name": "../x"}, "not the name of a file"),
        ({"name": ""}, "has the name '': it must have 1 to 255 printable characters"),
        ({"name": "x" * 10**6}, "has the name 'xxxx.*1 to 255 printable characters"),
        ({"name": "\ud800"}, r"has the name '.ud800': it must have 1 to 255 printable"),
        ({"name": "a\x1b[2J"}, r"has the name 'a.x1b\[2J': it must have 1 to 255 printable"),
        ({"splits": [{"shardLengths": ["2"]}]}, "has the name '': it must have 1 to 255"),
        (change_split(name="y" * 300), "has the name 'yyyy.*1 to 255 printable characters"),
        (change_split(filepathTemplate="{SPLIT}" * 10**6), "not the name of a file"),
        (change_split(filepathTemplate="{SPLIT}\ud800"), "not the name of a file"),
        ({"name": []}, "field name that is not a str"),
        ({"splits": {}}, "field splits that is not a list"),
        ({"splits": [1]}, "a split that is not an object"),
        ({"splits": []}, "has the splits : select one"),
        ({"fileFormat": "tfrecord"}, "contains tfrecord files"),
    ],
)
def test_damaged_metadata_is_one_sentence(info, message, folder):
    write(folder, info)
    with pytest.raises(UserError, match=message):
        tfds_metadata.read_metadata(folder)


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "x", "content": {"\\ud800": {}}}',
        "",
        "[]",
        "{}",
        "[" * 200_000,
        '{"featuresDict": 3}',
        '{"type": "x"}',
        "{\xff",
    ],
)
def test_damaged_features_are_one_sentence(text, folder):
    (folder / "features.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"features\.json"):
        tfds_metadata.read_metadata(folder)


def test_shards_with_more_records_than_they_can_contain_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tfds_metadata, "MIN_RECORD_BYTES", 2**30)
    with pytest.raises(UserError, match="is too small for 2 videos: download it again"):
        tfds_metadata.read_metadata(folder)
