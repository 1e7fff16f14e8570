"""The feature cache returns equal features, and extracts again if an input changes."""

import numpy as np
import pytest

from invnext_jax.evaluation import feature_cache
from invnext_jax.evaluation.features import VideoFeatures


def make_features(seed=0):
    rng = np.random.default_rng(seed)
    return VideoFeatures(
        frames_btd=rng.normal(size=(5, 3, 4)).astype(np.float32),
        labels={"shape": np.arange(5, dtype=np.int32), "label_x": np.ones(5, np.int32)},
        index_b=np.array([0, 1, 3, 4, 5], np.int32),
        sum_nd=rng.normal(size=(6, 4)),
        second_dd=rng.normal(size=(4, 4)),
    )


@pytest.fixture
def cache(tmp_path):
    return feature_cache.FeatureCache(tmp_path / "features")


def never():
    raise AssertionError("the features were extracted again")


def test_stored_features_are_equal_bit_for_bit(cache):
    expected = make_features()
    assert cache.get("encoder-train", "key", lambda: expected) is expected
    found = cache.get("encoder-train", "key", never)
    for name, value in vars(expected).items():
        if name != "labels":
            np.testing.assert_array_equal(getattr(found, name), value)
            assert getattr(found, name).dtype == value.dtype
    assert found.labels.keys() == expected.labels.keys()
    np.testing.assert_array_equal(found.labels["shape"], expected.labels["shape"])
    assert found.tokens == expected.tokens


def test_another_key_replaces_the_file(cache):
    cache.get("encoder-train", "old", make_features)
    new = make_features(1)
    assert cache.get("encoder-train", "new", lambda: new) is new
    cache.get("encoder-train", "new", never)
    assert [path.name for path in cache.folder.iterdir()] == ["encoder-train.npz"]


def test_incomplete_features_are_not_stored(cache):
    incomplete, complete = make_features(), make_features(1)
    assert cache.get("encoder-val", "key", lambda: incomplete, lambda: False) is incomplete
    assert cache.get("encoder-val", "key", lambda: complete, lambda: True) is complete
    cache.get("encoder-val", "key", never)


@pytest.mark.parametrize("content", [b"", b"no archive", "truncated"])
def test_damaged_files_are_extracted_again(cache, content):
    cache.get("encoder-val", "key", make_features)
    path = cache.folder / "encoder-val.npz"
    path.write_bytes(path.read_bytes()[:-100] if content == "truncated" else content)
    new = make_features(1)
    assert cache.get("encoder-val", "key", lambda: new) is new


def test_key_depends_on_encoder_manifest_videos_and_clips_but_not_on_workers():
    data = {"frames": 8, "size": 32, "sampling": "sparse", "workers": 1, "manifest": "a.csv"}
    key = feature_cache.feature_key("encoder", "digest", "videos", data)
    assert key == feature_cache.feature_key("encoder", "digest", "videos", {**data, "workers": 4})
    assert key == feature_cache.feature_key(
        "encoder", "digest", "videos", {**data, "manifest": "b.csv"}
    )
    others = [
        feature_cache.feature_key("other", "digest", "videos", data),
        feature_cache.feature_key("encoder", "other", "videos", data),
        feature_cache.feature_key("encoder", "digest", "other", data),
        *(
            feature_cache.feature_key("encoder", "digest", "videos", {**data, name: value})
            for name, value in (
                *(("frames", 4), ("size", 64), ("sampling", "dense")),
                ("clip_seconds", 1.0),  # decides which videos are dropped
            )
        ),
    ]
    assert len({key, *others}) == 8
