"""Manifests of existing TFDS data sets."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from invnext_jax.data import decode, manifest, shards
from invnext_jax.dataset_prep import indexing, tfds_index, tfds_metadata
from invnext_jax.errors import UserError

# TFDS calls a deprecated function of protobuf.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
OPTIONS = indexing.IndexOptions(workers=1, progress=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, videos):
    """A data set written by TFDS, with two splits of five and two records. One is not a video."""
    folder = tmp_path_factory.mktemp("tfds_videos")
    files = [videos.write(folder / f"{n}.mp4", frames=n) for n in (9, 20)]
    features = tfds.features.FeaturesDict(
        {
            "clip": tfds.features.Text(),
            "caption": tfds.features.Text(),
            "action": tfds.features.ClassLabel(names=["fall", "rise"]),
            "label_color": tfds.features.Scalar(np.int64),
            "id": tfds.features.Scalar(np.int64),
        }
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for name, numbers in {
        "train.array_record-00000-of-00002": [0, 1],
        "train.array_record-00001-of-00002": [2, 3, 4],
        "test.array_record-00000-of-00001": [0, 1],
    }.items():
        path = str(folder / f"tfds_videos-{name}")
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for i in numbers:
            clip = b"no video" if i == 3 else files[i % 2].read_bytes()
            labels = {"action": ("fall", "rise")[i % 2], "label_color": i}
            example = {"clip": clip, "caption": "words", "id": i, **labels}
            writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(name="train", shard_lengths=[2, 3], num_bytes=0),
            tfds.core.SplitInfo(name="test", shard_lengths=[2], num_bytes=0),
        ],
        check_data=False,
    )
    return folder


def test_manifest_has_labels_of_every_good_record(dataset, tmp_path, videos):
    assert tfds_index.is_tfds_dataset(dataset) and not tfds_index.is_tfds_dataset(tmp_path)
    out = tmp_path / "tfds_videos.csv"
    summary = tfds_index.index_dataset(dataset, out, split="train", options=OPTIONS)
    assert (summary.listed, summary.clean, summary.quarantined) == (5, 4, 1)
    rows = list(manifest.read_manifest(out))
    labels = sorted((r.labels["label_color"], r.labels["label_action"]) for r in rows)
    assert labels == [(0, 0), (1, 1), (2, 0), (4, 0)]
    assert {row.source for row in rows} == {"tfds_videos"}
    for row in rows:
        count = (9, 20)[row.labels["label_action"]]
        frames = decode.read_frames(shards.read_video(row.path, row.record), range)
        assert videos.numbers(frames) == [*range(count)]
    quarantine = (tmp_path / "tfds_videos.quarantine.csv").read_text()
    assert quarantine.count("\n") == 2 and "#" in quarantine and "Invalid data" in quarantine


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has the splits train, test: select one"),
        ({"split": "val"}, "select one of them with --split"),
        ({"split": "test", "feature": "sound"}, "has no feature 'sound'"),
        ({"split": "test", "feature": "caption"}, "none of 2 records contains a good video"),
    ],
)
def test_missing_names_are_errors(fields, message, dataset, tmp_path):
    with pytest.raises(UserError, match=message):
        tfds_index.index_dataset(dataset, tmp_path / "a.csv", **fields, options=OPTIONS)


def test_manifest_with_other_content_is_not_overwritten(dataset, tmp_path):
    (tmp_path / "a.csv").write_text("path,source\n")
    with pytest.raises(UserError, match="set --overwrite"):
        tfds_index.index_dataset(dataset, tmp_path / "a.csv", split="test", options=OPTIONS)


def _write_and_read(features, folder):
    features.save_config(folder)
    return tfds_metadata._read_features(folder / tfds_metadata.FEATURES)


def test_labels_are_integer_scalars(caplog, tmp_path):
    kinds = tfds.features.FeaturesDict(
        {
            "label_a": tfds.features.Tensor(shape=(), dtype=np.int32),
            "label_b": tfds.features.Scalar(np.uint8),
            "label_c": tfds.features.ClassLabel(num_classes=2),
            "label_d": tfds.features.Scalar(np.float32),
            "label_e": tfds.features.Tensor(shape=(2,), dtype=np.int64),
            "other": tfds.features.Scalar(np.int64),
        }
    )
    with caplog.at_level("WARNING"):
        names = tfds_index._label_columns(_write_and_read(kinds, tmp_path))
    assert names == {name: name for name in ("label_a", "label_b", "label_c")}
    assert [m.split("'")[1] for m in caplog.messages] == ["label_d", "label_e"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({}, "the record has no label 'action'"),
        ({"action": []}, "the record has no label 'action'"),
        ({"action": [2**31]}, "label 'action' is 2147483648, which is not a class number"),
    ],
)
def test_record_without_its_label_is_quarantined(labels, reason, dataset, monkeypatch):
    shard = str(dataset / "tfds_videos-test.array_record-00000-of-00001")
    probe = tfds_index.RecordProbe("", ("action",))
    assert probe(shard, 1)["row"][0] == 1
    example = shards.read_example(shard, 1)
    example.pop("action")
    monkeypatch.setattr(shards, "read_example", lambda *_: example | labels)
    assert probe(shard, 1) == {"reason": reason}


def test_class_names_are_those_of_each_class_label(tmp_path):
    label, scalar = tfds.features.ClassLabel, tfds.features.Scalar(np.int64)

    def find(**features):
        folder = tmp_path / "-".join(features)
        folder.mkdir(exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
        found = _write_and_read(tfds.features.FeaturesDict(features), folder)
        return tfds_index._class_ids(folder, found)

    names = {"label_action": {"fall": 0, "rise": 1}}
    assert find(action=label(names=["fall", "rise"]), n=scalar) == names
    assert find(action=label(num_classes=2)) == find(n=scalar) == {}
    two = {"label_a": {"fall": 0}, "label_b": {"rise": 0}}
    assert find(a=label(names=["fall"]), b=label(names=["rise"]), label_c=scalar) == two


def test_results_of_workers_that_no_call_returns_are_not_valid():
    probe = tfds_index.RecordProbe("", ("action",))
    row = [7, 60, 64, 48, 25.0, 2.4]
    for result in ({"row": row}, {"row": [-1, *row[1:]]}, {"reason": "broken"}):
        assert probe.is_valid(result, "a", 0)
    for result in (
        *(
            None,
            {},
            {"reason": 1},
            {"row": row[:-1]},
            {"row": tuple(row)},
            {"row": row, "reason": ""},
        ),
        *({"row": [2**31, *row[1:]]}, {"row": [0.5, *row[1:]]}, {"row": [*row[:-1], "2.4"]}),
    ):
        assert not probe.is_valid(result, "a", 0)
