"""Ground truth of the synthetic world matches the frames that the evaluation pipeline reads."""

import json
import zipfile

import numpy as np
import pytest
from fakes import FailingSampler, worker_pids

from configs import common
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline
from invnext_jax.data.clips import LoadClip
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import world
from invnext_jax.evaluation.truth.clip_reader import ClipReader, read_evaluation_clip
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.evaluation.truth.world import WorldTruth
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.spec import WorldSpec

NAME = "world:full/val?videos=4&size=48&frames=8&clutter=2"
SPEC = WorldSpec("full", size=48, split="val", clutter=2)


def data_config(frames=8, size=48):
    config = common.data()
    config.update(frames=frames, size=size, short_side=size, workers=0)
    return config


def test_rendered_truth_equals_that_of_the_clip():
    truth = WorldTruth(NAME, LoadClip.from_config(data_config()), points=6)
    assert len(truth) == 4 and truth.name == "world"
    found, clip = truth.load(2), render_clip(SPEC, 2)
    np.testing.assert_array_equal(found["video"], clip.video)
    np.testing.assert_array_equal(found["depth"], clip.depth)
    np.testing.assert_array_equal(found["ids"], clip.ids)
    np.testing.assert_allclose(found["boxes"], clip.boxes, atol=1e-6)
    np.testing.assert_array_equal(found["present"], clip.visible > 0)
    assert found["points"].shape == (6, 8, 2) and not found["occluded"][:, 0].any()
    assert {name: array.dtype.name for name, array in found.items()} == {
        "video": "uint8",
        "depth": "float32",
        "boxes": "float32",
        "present": "bool",
        "ids": "int32",
        "points": "float32",
        "occluded": "bool",
    }


def test_frames_are_those_of_the_evaluation_pipeline():
    config = data_config(frames=3, size=24)
    (batch,) = pipeline.make_eval_dataset(config, manifest=NAME, batch_size=4)
    truth = WorldTruth(NAME, LoadClip.from_config(config))
    frames = [1, 4, 6]  # centers of three segments of eight frames
    for row in range(4):
        found, clip = truth.load(row), render_clip(SPEC, row)
        np.testing.assert_array_equal(found["video"], batch["video"][row])
        np.testing.assert_array_equal(found["ids"], clip.ids[frames, 1::2, 1::2])
        np.testing.assert_array_equal(found["depth"], clip.depth[frames, 1::2, 1::2])
        np.testing.assert_allclose(found["boxes"], clip.boxes[frames], atol=1e-6)
        assert not found["occluded"][:, 0].any()


def test_options_of_the_source_apply_to_the_truth():
    config = data_config(frames=3)
    config.by_source = {"world": {"sampling": "dense", "stride": (2, 2)}}
    (batch,) = pipeline.make_eval_dataset(config, manifest=NAME, batch_size=4)
    found = WorldTruth(NAME, LoadClip.from_config(config)).load(1)
    clip = render_clip(SPEC, 1)
    np.testing.assert_array_equal(found["video"], batch["video"][1])
    np.testing.assert_array_equal(found["video"], clip.video[[1, 3, 5]])
    np.testing.assert_array_equal(found["ids"], clip.ids[[1, 3, 5]])


def test_written_worlds_have_the_same_truth(tmp_path):
    manifest = write_world(SPEC, tmp_path, 4, progress=False)
    config = data_config(frames=4, size=24)
    config.short_side = 24  # frames are scaled before the crop
    load = LoadClip.from_config(config)
    written, rendered = WorldTruth(str(manifest), load), WorldTruth(NAME, load)
    for row in range(4):
        one, other = written.load(row), rendered.load(row)
        for name in ("depth", "ids", "boxes", "present", "points", "occluded"):
            np.testing.assert_array_equal(one[name], other[name])
        difference = np.abs(one["video"].astype(float) - other["video"])
        assert difference.mean() < 6  # compressed


def test_damaged_files_of_truth_are_bad_rows(tmp_path):
    manifest = write_world(SPEC, tmp_path, 3, progress=False)
    truth = WorldTruth(str(manifest), LoadClip.from_config(data_config()))
    files = [tmp_path / "gt" / "val" / f"{row:06d}.npz" for row in range(3)]
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    (tmp_path / "val" / "000002.mp4").write_bytes(b"no video")
    for row, kind in enumerate(("truncated", "missing", "corrupt")):
        with pytest.raises(BadTruth) as caught:
            truth.load(row)
        assert caught.value.kind == kind or row == 2


def test_truth_that_is_large_when_decompressed_is_a_bad_row(tmp_path, monkeypatch):
    manifest = write_world(SPEC, tmp_path, 1, progress=False)
    path = tmp_path / "gt" / "val" / "000000.npz"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", bytes(2**22))
    assert path.stat().st_size < 2**20
    truth = WorldTruth(str(manifest), LoadClip.from_config(data_config()))
    truth.load(0)
    monkeypatch.setattr(world, "MAX_BYTES", 2**22)
    with pytest.raises(BadTruth, match="when decompressed"):
        truth.load(0)


def test_truth_of_another_shape_or_type_is_a_bad_row(tmp_path):
    manifest = write_world(SPEC, tmp_path, 1, progress=False)
    path = tmp_path / "gt" / "val" / "000000.npz"
    truth = WorldTruth(str(manifest), LoadClip.from_config(data_config()))
    good = dict(np.load(path))
    for name, array in (
        ("depth", good["depth"][:1]),
        ("boxes", good["boxes"][..., :3]),
        ("visible", good["visible"][:, :0]),
        ("ids", good["ids"].astype(str)),
    ):
        np.savez(path, **{**good, name: array})
        with pytest.raises(BadTruth, match=f"{name} has"):
            truth.load(0)
    np.savez(path, **{**good, "ids": good["ids"] + 99})
    with pytest.raises(BadTruth, match="ids has unknown objects"):
        truth.load(0)


def test_names_and_sizes_of_a_written_world_are_checked(tmp_path):
    manifest = write_world(SPEC, tmp_path, 1, progress=False)
    load = LoadClip.from_config(data_config())
    manifest.write_text(manifest.read_text().replace("000000", "clip"))
    with pytest.raises(UserError, match="its name is not a number"):
        WorldTruth(str(manifest), load)
    manifest.write_text(manifest.read_text().replace("clip", "1" * 200))
    with pytest.raises(UserError, match="its name is not a number"):
        WorldTruth(str(manifest), load)
    path = tmp_path / "spec.json"
    spec = json.loads(path.read_text())
    for change in ({"size": 10**9}, {"frames": 8.5}, {"seed": "1"}, {"frames": float("nan")}):
        path.write_text(json.dumps(spec | change))
        with pytest.raises(UserError, match="must be an integer from"):
            WorldTruth(str(manifest), load)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_video_that_blocks_or_kills_its_worker_is_a_bad_row(hangs, tmp_path):
    manifest = manifest_lib.read_manifest(write_world(SPEC, tmp_path, 1, progress=False))
    load = LoadClip.from_config(data_config())
    reader = ClipReader(seconds=1.0 if hangs else 30.0)
    with pytest.raises(BadTruth) as caught:
        reader.read(manifest[0], FailingSampler(hangs), None)
    assert caught.value.kind == ("time limit" if hangs else "worker died")
    assert ("longer than 1 s" if hangs else "its worker died twice") in str(caught.value)
    clip = read_evaluation_clip(reader, manifest[0], load)
    expected = load(manifest[0], [None])["video"][0]
    np.testing.assert_array_equal(clip.video_thwc, expected)
    (worker,) = worker_pids()
    del reader, caught  # the traceback refers to the reader
    assert worker not in worker_pids()


def test_a_manifest_without_truth_is_refused(tmp_path):
    manifest = write_world(SPEC, tmp_path, 1, progress=False)
    (tmp_path / "gt" / "val" / "000000.npz").unlink()
    (tmp_path / "gt" / "val").rmdir()
    load = LoadClip.from_config(data_config())
    with pytest.raises(UserError, match="no ground truth"):
        WorldTruth(str(manifest), load)
    for name in ("/x.mp4", f"/{'b' * 300}/c/1.mp4"):
        (tmp_path / "other.csv").write_text(f"path,source\n{name},w\n")
        with pytest.raises(UserError, match="no ground truth"):
            WorldTruth(str(tmp_path / "other.csv"), load)
    with pytest.raises(UserError, match="objects"):
        WorldTruth(f"{NAME},world:simple/val?videos=2", load)
