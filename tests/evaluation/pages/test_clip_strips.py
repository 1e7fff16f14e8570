"""Strips of frames of videos that are read again from manifests and data sets."""

import base64
import io
import os

import ml_collections
import numpy as np
import pytest
import truth_layouts
from PIL import Image

from configs.eval.tasks import depth, linear_probe
from invnext_jax.data import files as files_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.access_rules import DEFAULT_RULES
from invnext_jax.evaluation.evaluation_data import hash_videos
from invnext_jax.evaluation.pages import clip_strips, video_labels
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec

SPEC = WorldSpec(size=16, frames=4, split="val")
WORLD = "world:simple/val?videos=4&size=16&frames=4"


def make_results(config):
    config.data.update(size=16, short_side=16, frames=4)
    manifest = config.val_manifest
    digests = {"val": manifest_lib.hash_manifests(manifest) if manifest else ""}
    return {"manifests": digests, "run": {"config": config.to_dict()}}


@pytest.fixture
def results():
    config = linear_probe.get_config("tiny")
    config.val_manifest = config.data.manifest = WORLD
    return make_results(config)


def decode(uri):
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)), int)


def test_strips_show_the_frames_of_the_videos(results):
    found = clip_strips.read_strips(results, "val", [3, 1, 1])
    assert list(found) == [1, 3]
    for row, uri in found.items():
        strip_hwc = decode(uri)
        assert strip_hwc.shape == (16, 4 * 16 + 3 * clip_strips.GAP, 3)
        video_thwc = render_clip(SPEC, row).video.astype(int)
        last_hwc = strip_hwc[:, -16:]
        assert np.abs(last_hwc - video_thwc[-1]).mean() < 12  # compressed
        assert np.abs(last_hwc - video_thwc[0]).mean() > np.abs(last_hwc - video_thwc[-1]).mean()


def test_large_and_long_clips_are_shrunk():
    video_thwc = np.zeros((30, 128, 256, 3), np.uint8)
    width = clip_strips.FRAMES * (128 + clip_strips.GAP) - clip_strips.GAP
    assert decode(clip_strips.encode_strip(video_thwc)).shape == (64, width, 3)


def test_strips_of_a_data_set_without_manifests(tmp_path):
    truth_layouts.write_scannet_splits(tmp_path, spec=SPEC)
    config = depth.get_config("tiny")
    config.update(train_manifest="", val_manifest="")
    config.depth.update(data="scannet", root=str(tmp_path), stride=1)
    results = make_results(config)
    found = clip_strips.read_strips(results, "val", [0, 1], {"evaluator": "depth"})
    strip_hwc = decode(found[1])[:, :16]
    assert np.abs(strip_hwc - render_clip(SPEC, 3).video[0]).mean() < 12
    assert clip_strips.read_strips(results, "val", [0], {"evaluator": "linear_probe"}) == {}


def test_strips_of_an_evaluator_with_its_own_manifests(results):
    other = "world:anticipation/val?videos=3&size=16&frames=6"
    manifests = {"train_manifest": "", "val_manifest": other}
    results["run"]["config"]["anticipation"] = manifests
    row = {"evaluator": "anticipation", "videos_key": manifest_lib.hash_manifests(other)}
    found = clip_strips.read_strips(results, "val", [2], row)
    spec = WorldSpec("anticipation", size=16, frames=6, split="val")
    first_hwc = render_clip(spec, 2).video[0].astype(int)
    assert np.abs(decode(found[2])[:, :16] - first_hwc).mean() < 12
    assert clip_strips.read_strips(results, "val", [2], {**row, "videos_key": "x"}) == {}


def test_replaced_videos_are_not_shown(tmp_path):
    write_world(SPEC, tmp_path, 3, progress=False)
    config = linear_probe.get_config("tiny")
    config.val_manifest = config.data.manifest = str(tmp_path / "val.csv")
    results = make_results(config)
    results["videos"] = {"val": hash_videos(config.val_manifest, DEFAULT_RULES, 60.0)}
    assert list(clip_strips.read_strips(results, "val", [0, 2])) == [0, 2]
    first, *_, last = sorted(tmp_path.rglob("*.mp4"))
    first.write_bytes(last.read_bytes())
    clip_strips.clear_caches()
    assert clip_strips.read_strips(results, "val", [0, 2]) == {}
    del results["videos"]  # as in results of older versions
    assert list(clip_strips.read_strips(results, "val", [0, 2])) == [0, 2]


def test_a_manifest_is_read_once(tmp_path, monkeypatch):
    write_world(SPEC, tmp_path, 3, progress=False)
    config = linear_probe.get_config("tiny")
    config.val_manifest = config.data.manifest = str(tmp_path / "val.csv")
    results = make_results(config)
    results["videos"] = {"val": hash_videos(config.val_manifest, DEFAULT_RULES, 60.0)}
    reads, read_file = [], manifest_lib._read_file
    monkeypatch.setattr(
        manifest_lib, "_read_file", lambda *args: reads.append(args[0]) or read_file(*args)
    )
    clip_strips.clear_caches()
    for rows in ([0, 2], [1]):
        assert list(clip_strips.read_strips(results, "val", rows)) == rows
        assert set(video_labels.read_labels(results, "val", ["shape"])) == {"shape"}
    assert reads == [config.val_manifest]


def test_replaced_videos_of_an_evaluator_are_not_shown(results):
    other = "world:anticipation/val?videos=3&size=16&frames=6"
    manifests = {"train_manifest": "", "val_manifest": other}
    results["run"]["config"]["anticipation"] = manifests
    row = {"evaluator": "anticipation", "videos_key": manifest_lib.hash_manifests(other)}
    row["videos_digest"] = hash_videos(other, DEFAULT_RULES, 60.0)
    assert list(clip_strips.read_strips(results, "val", [2], row)) == [2]
    assert clip_strips.read_strips(results, "val", [2], {**row, "videos_digest": "x"}) == {}


def test_videos_that_cannot_be_read_are_left_out(results, tmp_path):
    assert clip_strips.read_strips(results, "val", []) == {}
    changed = {**results, "manifests": {"val": "x"}}
    assert clip_strips.read_strips(changed, "val", [0]) == {}
    older = ml_collections.ConfigDict(results["run"]["config"])
    del older.data.sampling
    assert (
        clip_strips.read_strips({**results, "run": {"config": older.to_dict()}}, "val", [0]) == {}
    )
    assert clip_strips.read_strips({"manifests": {}}, "val", [0]) == {}
    (tmp_path / "val.csv").write_text("path,source,label_shape\nnone.mp4,x,0\n")
    config = linear_probe.get_config("tiny")
    config.val_manifest = str(tmp_path / "val.csv")
    assert clip_strips.read_strips(make_results(config), "val", [0]) == {}


def test_results_do_not_allow_remote_videos(tmp_path, monkeypatch):
    write_world(SPEC, tmp_path, 2, progress=False)
    video = next(tmp_path.rglob("*.mp4"))
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.setattr(files_lib, "open_remote", lambda *_: pytest.fail("a remote file is opened"))
    config = linear_probe.get_config("tiny")
    config.val_manifest = str(tmp_path / "val.csv")
    config.data.update(protocols=("http", "reference"), other_hosts=True)
    for other, found in (
        ("http://127.0.0.1:9/1.mp4", []),
        ("https://127.0.0.1:9/1.mp4", []),
        ("reference://x", []),
        ("pipe.mp4", [0]),
    ):
        (tmp_path / "val.csv").write_text(f"path,source\n{video},x\n{other},x\n")
        results = make_results(config)
        assert list(clip_strips.read_strips(results, "val", [0, 1, 7])) == found
        results["videos"] = {"val": "x"}
        assert clip_strips.read_strips(results, "val", [0]) == {}
    config = depth.get_config("tiny")
    config.update(train_manifest="", val_manifest="")
    config.depth.update(data="scannet", root="https://127.0.0.1:9/x", stride=1)
    row = {"evaluator": "depth"}
    assert clip_strips.read_strips(make_results(config), "val", [0], row) == {}


def test_reports_show_clips_of_local_manifests_with_local_videos_only(tmp_path):
    local, remote = tmp_path / "local.csv", tmp_path / "remote.csv"
    local.write_text("path,source\n0.mp4,x\n")
    remote.write_text("path,source\nfile:///0.mp4,x\n")
    for name, expected in (
        *((str(local), True), (WORLD, True), (str(remote), False), (f"{local},{remote}", False)),
        *(("https://127.0.0.1:9/x.csv", False), (str(tmp_path / "none.csv"), False), (None, False)),
    ):
        assert (clip_strips.read_local(name) is not None) == expected
