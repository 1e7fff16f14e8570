"""Labels and class names of the videos of an evaluation."""

import json
import os

import pytest

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.evaluation.pages.video_labels import (
    is_local,
    open_manifest,
    read_labels,
    read_unchanged,
)

TEXT = "path,source,label_shape,label_color\n0.mp4,x,1,0\n1.mp4,x,-1,2\n"


def make_results(manifest):
    digest = manifest_lib.hash_manifests(str(manifest))
    return {"manifests": {"val": digest}, "run": {"config": {"val_manifest": str(manifest)}}}


def test_class_names_belong_to_the_only_column(tmp_path):
    manifest = tmp_path / "val.csv"
    manifest.write_text(TEXT.replace("label_color", "note"))
    (tmp_path / "val.classes.json").write_text(json.dumps({"cats": 0, "dogs": 1}))
    found = read_labels(make_results(manifest), "val", ["shape", "motion"])
    assert list(found) == ["shape"]
    assert found["shape"].labels_b.tolist() == [1, -1]
    assert [found["shape"].name_class(i) for i in (0, 1, 7)] == ["cats", "dogs", "7"]
    manifest.write_text(TEXT)  # with two columns, it is not known to which the names belong
    assert read_labels(make_results(manifest), "val", ["shape"])["shape"].names == {}


def test_classes_of_a_world_have_names():
    results = make_results("world:simple/val?videos=4&size=16&frames=2")
    found = read_labels(results, "val", ["color", "motion"])
    assert set(found) == {"color", "motion"} and len(found["color"].labels_b) == 4
    assert found["color"].name_class(0) == "red"


def test_an_evaluator_may_have_its_own_manifests(tmp_path):
    (tmp_path / "val.csv").write_text(TEXT)
    results = make_results(tmp_path / "val.csv")
    other = tmp_path / "other.csv"
    other.write_text("path,source,label_verb\n0.mp4,x,4\n")
    section = {"train_manifest": "", "val_manifest": str(other)}
    results["run"]["config"]["anticipation"] = section
    row = {"evaluator": "anticipation", "videos_key": manifest_lib.hash_manifests(str(other))}
    assert open_manifest(results, "val", row).file == str(other)
    assert read_labels(results, "val", ["verb", "shape"], row)["verb"].labels_b.tolist() == [4]
    assert open_manifest(results, "val", {**row, "videos_key": "x"}) is None
    assert open_manifest(results, "val", {"evaluator": "knn"}).file == str(tmp_path / "val.csv")


def test_changed_and_missing_manifests_have_no_labels(tmp_path):
    manifest = tmp_path / "val.csv"
    manifest.write_text(TEXT)
    results = make_results(manifest)
    assert open_manifest(results, "val").file == str(manifest)
    assert open_manifest(results, "train") is None
    read_unchanged.cache_clear()
    manifest.write_text(TEXT + "2.mp4,x,0,0\n")
    assert open_manifest(results, "val") is None and read_labels(results, "val", ["shape"]) == {}
    read_unchanged.cache_clear()
    manifest.unlink()
    assert open_manifest(results, "val") is None
    assert open_manifest({}, "val") is None


def test_only_local_manifests_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_lib, "hash_manifests", lambda _: "x")
    (tmp_path / "val.csv").write_text(TEXT)
    os.mkfifo(tmp_path / "pipe")
    local, world = str(tmp_path / "val.csv"), "world:simple/val?videos=100000&size=16"
    refused = [
        *("http://127.0.0.1:9/x.csv", "https://example.org/x.csv", f"file://{local}"),
        *(f"{local},memory://x", "simplecache::https://example.org/x.csv", "", "a\0b"),
        *(str(tmp_path), str(tmp_path / "pipe"), world.replace("000&", "001&"), "world:?"),
        *(None, 3, [local], {"a": 1}),
    ]
    refused += [world + "&clutter=" + "0" * 2000, f"{world}&frames=4096".replace("16&", "257&")]
    for name in [local, world, f"{local}, {world}"]:
        results = {"manifests": {"val": "x"}, "run": {"config": {"val_manifest": name}}}
        read_unchanged.cache_clear()
        found = open_manifest(results, "val")
        assert len(found) == 2 * (local in name) + 100_000 * (world in name)
    for name in refused:
        results = {"manifests": {"val": "x"}, "run": {"config": {"val_manifest": name}}}
        assert open_manifest(results, "val") is None
        assert read_labels(results, "val", ["shape"]) == {}


@pytest.mark.parametrize(
    ("worlds", "videos", "expected"),
    [(2, 50_000, True), (3, 50_000, False), (100, 1, True), (101, 1, False)],
)
def test_the_number_of_rendered_clips_is_limited(worlds, videos, expected):
    names = (f"world:simple/val?videos={videos}&seed={number}" for number in range(worlds))
    assert is_local(",".join(names)) == expected
