"""`VideoEncoder` returns the features of the module, for any number and size of frames."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from invnext_jax.data import manifest
from invnext_jax.data.decode import BadVideo
from invnext_jax.errors import UserError
from invnext_jax.evaluation import clip_settings, exporter, pretrained
from invnext_jax.evaluation.video_encoder import VideoEncoder
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.patches import normalize


@pytest.fixture(scope="module")
def exported(saved_stage1, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "encoder.safetensors"
    exporter.export_run(saved_stage1, path)
    return path


@pytest.fixture
def video(world):
    return manifest.read_manifest(str(world)).paths[0]


def test_features_are_those_of_the_module(exported, video):
    encoder = VideoEncoder(exported)
    tokens = encoder(video)
    assert tokens.shape == (2 * 16, 64) and tokens.dtype == np.float32
    loaded = pretrained.load_encoder(exported)
    clip = normalize(encoder.read(video)[None])
    out = loaded.encoder.apply({"params": loaded.params}, clip).tokens_bnd
    np.testing.assert_allclose(tokens, out[0, 4:], atol=1e-5)
    pool = AttentionPool(64, 2, "float32").apply({"params": loaded.pool}, out)
    np.testing.assert_allclose(encoder(video, pooled=True), pool[0], atol=1e-5)


def test_any_frame_count_and_any_size_that_the_patch_divides(exported, video):
    encoder = VideoEncoder(exported)
    for frames, size in ((1, 32), (3, 48), (8, 16)):
        tokens = encoder(video, frames=frames, size=size)
        assert tokens.shape == (frames * (size // 8) ** 2, 64)
        assert np.isfinite(tokens).all()
    with pytest.raises(UserError, match="30 x 30 pixels must be divisible by the patch size 8"):
        encoder(video, size=30)
    for wrong in ({"frames": 0}, {"size": 0}, {"frames": -1}):
        with pytest.raises(UserError, match="must be positive"):
            encoder(video, **wrong)


def test_long_clips_of_the_checkpoint_are_not_the_default(exported, video, monkeypatch):
    monkeypatch.setattr(clip_settings, "MAX_PATCHES", 31)
    encoder = VideoEncoder(exported)
    for sizes in ({}, {"frames": 2}, {"size": 32}):
        with pytest.raises(UserError, match="have 32 patches, .*: set frames and size, such as 2"):
            encoder(video, **sizes)
    assert encoder(video, frames=2, size=32).shape == (32, 64)


def test_clips_that_are_not_uint8_are_refused(exported):
    encoder = VideoEncoder(exported)
    clips = np.zeros((1, 2, 32, 32, 3), np.uint8)
    assert encoder.encode(clips).shape[0] == 1
    for wrong, part in (
        (clips / 255, "float64 "),
        (clips[0], "uint8 \\[2, 32, 32, 3\\]"),
        (clips[..., :1], "uint8 \\[1, 2, 32, 32, 1\\]"),
        (clips.transpose(0, 4, 1, 2, 3), "uint8 \\[1, 3, 2, 32, 32\\]"),
        (clips.tolist(), "list \\[\\]"),
    ):
        with pytest.raises(UserError, match=f"the clips are {part}.*must be an array of uint8"):
            encoder.encode(wrong)


def test_example_of_the_readme_runs(exported, video, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    shutil.copytree(exported.parent, tmp_path, dirs_exist_ok=True)
    shutil.copy(video, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["tokens"].shape == (2 * 16, 64) and found["vector"].shape == (64,)


def test_each_clip_size_compiles_once(exported, video):
    encoder = VideoEncoder(exported)
    encoder(video)
    encoder(video, start=0.0)
    assert encoder._tokens._cache_size() == 1


def test_an_untrained_pool_is_a_warning(exported, caplog):
    encoder = VideoEncoder(exported)
    clip = np.zeros((1, 2, 32, 32, 3), np.uint8)
    encoder.encode(clip)
    assert "pooled" not in caplog.text
    for _ in range(2):
        encoder.encode(clip, pooled=True)
    assert caplog.text.count("the pooled features are not meaningful") == 1


def test_missing_file_and_missing_pool_are_errors(stage1_run, tmp_path, exported):
    with pytest.raises(BadVideo, match="nothing.mp4"):
        VideoEncoder(exported)(Path(tmp_path / "nothing.mp4"))
    exporter.export_run(stage1_run, tmp_path / "bare.safetensors", parts=("encoder",))
    clip = np.zeros((1, 2, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="have no pool"):
        VideoEncoder(tmp_path / "bare.safetensors").encode(clip, pooled=True)


@pytest.mark.parametrize("name", ["a:b.mp4", "world:cup.mp4", "\udcff \n.mp4"])
def test_relative_path_of_any_name_is_a_local_file(exported, video, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, name)
    encoder = VideoEncoder(exported)
    for path in (name, Path(name)):
        np.testing.assert_array_equal(encoder.read(path), encoder.read(video))
