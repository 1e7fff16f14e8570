"""Sizes in untrusted files are checked before a model is built."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import common, stage1, stage2
from invnext_jax.errors import UserError
from invnext_jax.weights import export, files, import_weights, model_sizes

BASE = {"embed_dim": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 32}
BASE |= {"num_frames": 4}
CLIP = {"model_type": "clip_vision_model", "patch_size": 8, "image_size": 32}
TEXT = {"model_type": "modernbert"}


def published(extra=None, **fields):
    return json.dumps({"model_config": {**BASE, **fields}, **(extra or {})})


VIDEO = {
    "nested JSON": "[" * 200_000,
    "long number": '{"a": ' + "9" * 5000 + "}",
    "depth": published(depth=300_000_000),
    "width": published(embed_dim=2**40, num_heads=2**20),
    "frames": published(num_frames=10**12),
    "frames that no table has": published(num_frames=4000),
    "negative": published(depth=-1),
    "zero": published(embed_dim=0),
    "zero patch": published(patch_size=0),
    "boolean": published(depth=True),
    "text": published(img_size="32"),
    "list": published(patch_size=[8]),
    "float": published(embed_dim=64.0),
    "ratio": published(mlp_ratio=1e308),
    "ratio of text": published(mlp_ratio="4"),
    "no ratio": published(mlp_ratio=float("nan")),
    "heads": published(num_heads=7),
    "section": json.dumps({"model_config": []}),
    "extra list": published({"invnext_jax": []}),
    "extra config": published({"invnext_jax": {"config": 3}}),
    "extra stage": published({"invnext_jax": {"config": {"stage": "\x1b]0;x"}, "parts": ["a"]}}),
    "extra parts": published({"invnext_jax": {"config": {"stage": "stage1"}, "parts": 3}}),
    "extra depth": published({"invnext_jax": {"config": {"encoder": {"depth": 10**9}}}}),
    "extra clips": published(
        {"invnext_jax": {"config": {"stage": "stage1", "data": {"frames": 4096, "size": 4096}}}}
    ),
    "extra type": published({"invnext_jax": {"config": {"encoder": 3}}}),
}
OTHERS = {
    "clip depth": ("clip", {**CLIP, "num_hidden_layers": 10**9}),
    "clip size": ("clip", {**CLIP, "image_size": 10**9}),
    "clip odd": ("clip", {**CLIP, "hidden_size": "x"}),
    "clip tower": ("clip", {"model_type": "clip", "vision_config": [1]}),
    "clip act": ("clip", {**CLIP, "hidden_act": ["gelu"]}),
    "dinov2 ratio": ("dinov2", {"model_type": "dinov2", "mlp_ratio": 1e308}),
    "dinov2 width": ("dinov2", {"model_type": "dinov2", "hidden_size": 10**9}),
    "siglip": ("siglip2", {"model_type": "siglip_vision_model", "patch_size": 0}),
    "text depth": ("modernbert", {**TEXT, "num_hidden_layers": 10**9}),
    "text width": ("modernbert", {**TEXT, "hidden_size": 10**9}),
    "text rope": ("modernbert", {**TEXT, "rope_parameters": [1]}),
    "type": ("modernbert", {"model_type": ["modernbert"]}),
}
CASES = [("internvideo_next", text) for text in VIDEO.values()]
CASES += [(kind, json.dumps(config)) for kind, config in OTHERS.values()]


@pytest.mark.parametrize(("kind", "text"), CASES, ids=[*VIDEO, *OTHERS])
def test_hostile_config_is_one_sentence(kind, text, tmp_path):
    names = ("x", "embeddings.patch_embedding.weight", "layers.1.attn.Wqkv.weight")
    names += ("embeddings.patch_embeddings.projection.weight",)
    save_file({name: np.zeros(1, np.float32) for name in names}, tmp_path / files.SINGLE_FILE)
    (tmp_path / "config.json").write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError):
        import_weights.import_weights(kind, tmp_path, tmp_path / "out.safetensors", last_layers=1)
    assert time.monotonic() - start < 20
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("variant", common.VARIANTS)
@pytest.mark.parametrize("stage", [stage1, stage2])
def test_configs_of_the_paper_are_allowed(stage, variant):
    model_sizes.check_sizes(stage.get_config(variant).to_dict(), "config.json")


def test_sizes_of_all_variants_are_allowed():
    for encoder in common.ENCODERS.values():
        config = {"encoder": {**encoder, "patch": 14, "size": 448, "frames": 64}}
        model_sizes.check_sizes(config, "config.json")
    for teacher in common.TEACHERS.values():
        model_sizes.check_sizes({"teacher": dict(teacher)}, "config.json")


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.bool_, np.uint8])
def test_tensor_of_another_type_is_named(kind, tmp_path):
    save_file({"a": np.ones(3, kind)}, tmp_path / "a.safetensors")
    tensors, _ = files.open_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="the tensor a has the type"):
        tensors["a"].read()


@pytest.mark.parametrize(
    "about",
    [
        {"config": []},
        {"config": {"encoder": 3}},
        {"config": {"teacher": {"depth": 10**9}}},
        {"config": {"a": {}}, "source": []},
        {"config": {"encoder": {"patch": 8, "size": 4096, "width": 16, "frames": 1}}},
        {"config": {"encoder": {"patch": 8}, "data": {"frames": 4096, "size": 4096}}},
    ],
)
def test_export_with_a_hostile_description_is_refused(about, tmp_path):
    path = tmp_path / "a.safetensors"
    export.write_export(path, {"encoder": {"w": np.zeros(1, np.float32)}}, about)
    with pytest.raises(UserError, match=r"a\.json"):
        export.open_export(path)


@pytest.mark.parametrize("names", [("a", "a/b"), ("/".join("a" * 100),), ("a/b/c", "a/b")])
def test_tensor_names_that_are_no_tree_are_refused(names, tmp_path):
    save_file({name: np.zeros(1, np.float32) for name in names}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="which is not a path"):
        export.open_export(tmp_path / "a.safetensors")


def test_pixels_of_clips_are_limited():
    sizes = {"width": 64, "patch": 256, "frames": 512}
    model_sizes.check_sizes({**sizes, "size": 512}, "a")
    with pytest.raises(UserError, match="clips of 8,589,934,592 pixels, but at most 268,435,456"):
        model_sizes.check_sizes({**sizes, "size": 4096}, "a")
    with pytest.raises(UserError, match="short_side='1000000'"):
        model_sizes.check_sizes({"data": {"short_side": 10**6}}, "a")
