"""Encoders of other projects return the outputs of transformers, and share one result table."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from golden_cases import assert_near
from parity import import_transformers, numpy_of, randomise, save

from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, pretrained, tables
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.weights import export, import_weights

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
IMAGE = {**TINY, "image_size": 32, "patch_size": 8}
KINDS = ("siglip2", "clip", "dinov2", "vjepa2", "videomae")
STATISTICS = {  # names of the pixel statistics in transformers
    "siglip2": "IMAGENET_STANDARD",
    "clip": "OPENAI_CLIP",
    "dinov2": "IMAGENET_DEFAULT",
    "vjepa2": "IMAGENET_DEFAULT",
    "videomae": "IMAGENET_DEFAULT",
}


@pytest.fixture(scope="module")
def hf():
    torch, transformers = import_transformers()
    return SimpleNamespace(torch=torch, models=transformers)


def make_clips(size, frames=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (2, frames, size, size, 3), dtype=np.uint8)


def apply(encoder, clips, layers=()):
    return jax.jit(encoder.apply, static_argnums=2)(encoder.params, clips, layers)


def make_model(hf, kind):
    models = hf.models
    if kind == "siglip2":
        config = models.SiglipVisionConfig(**IMAGE, intermediate_size=48)
        return randomise(hf.torch, models.SiglipVisionModel(config))
    if kind == "clip":
        config = models.CLIPVisionConfig(**IMAGE, intermediate_size=48)
        return randomise(hf.torch, models.CLIPVisionModel(config))
    if kind == "dinov2":
        config = models.Dinov2WithRegistersConfig(**IMAGE, num_register_tokens=2)
        return randomise(hf.torch, models.Dinov2WithRegistersModel(config))
    if kind == "vjepa2":
        config = models.VJEPA2Config(
            **{**TINY, "patch_size": 8, "crop_size": 32, "frames_per_clip": 4},
            **{"pred_hidden_size": 24, "pred_num_hidden_layers": 1},
        )
        return randomise(hf.torch, models.VJEPA2Model(config))
    config = models.VideoMAEConfig(**IMAGE, num_frames=4, intermediate_size=48, num_labels=5)
    return randomise(hf.torch, models.VideoMAEForVideoClassification(config))


def make_pixels(hf, clips, kind):
    """Returns the clips as torch pixels [b t c h w], normalized for this kind of encoder."""
    known = hf.models.image_utils
    mean, std = (np.array(getattr(known, f"{STATISTICS[kind]}_{x}")) for x in ("MEAN", "STD"))
    pixels = np.moveaxis((clips / 255 - mean) / std, -1, 2).astype(np.float32)
    return hf.torch.from_numpy(pixels.copy())


@pytest.mark.parametrize("kind", ["siglip2", "clip", "dinov2"])
def test_image_encoders_equal_transformers_on_every_frame(hf, kind, tmp_path):
    model = make_model(hf, kind)
    encoder = pretrained.load_frozen(save(model, tmp_path))
    clips = make_clips(32)
    found = apply(encoder, clips, (2, 0))
    with hf.torch.no_grad():
        expected = model(make_pixels(hf, clips, kind).flatten(0, 1), output_hidden_states=True)
    skip = {"siglip2": 0, "clip": 1, "dinov2": 3}[kind]
    last = numpy_of(expected.last_hidden_state).reshape(2, 3, -1, 32)
    assert_near(found.tokens_btnd, last[:, :, skip:], 1e-4)
    pooled = numpy_of(expected.pooler_output).reshape(2, 3, 32).mean(axis=1)
    assert_near(found.pooled_bd, pooled, 1e-4)
    if kind == "siglip2":
        assert found.class_bkd is None
    else:
        assert_near(found.class_bkd, last[:, :, 0], 1e-4)
    for place, layer in enumerate((2, 0)):
        state = numpy_of(expected.hidden_states[layer + 1]).reshape(2, 3, -1, 32)
        assert_near(found.layers_lbtnd[place], state[:, :, skip:], 1e-4)


@pytest.mark.parametrize("kind", ["vjepa2", "videomae"])
def test_video_encoders_equal_transformers(hf, kind, tmp_path):
    model = make_model(hf, kind)
    encoder = pretrained.load_frozen(save(model, tmp_path))
    clips = make_clips(32, frames=4)
    found = apply(encoder, clips, (2, 0, 2))
    tower, options = (model, {"skip_predictor": True}) if kind == "vjepa2" else (model.videomae, {})
    with hf.torch.no_grad():
        pixels = make_pixels(hf, clips, kind)
        expected = tower(pixels, output_hidden_states=True, **options)
    assert_near(found.tokens_btnd, numpy_of(expected.last_hidden_state).reshape(2, 2, 16, 32), 1e-4)
    for place, layer in enumerate((2, 0, 2)):
        state = numpy_of(expected.hidden_states[layer + 1]).reshape(2, 2, 16, 32)
        assert_near(found.layers_lbtnd[place], state, 1e-4)
    assert found.class_bkd is None
    if kind == "vjepa2":
        assert found.pooled_bd is None and encoder.pool_width == 0
    else:
        with hf.torch.no_grad():
            mean = model.fc_norm(expected.last_hidden_state.mean(1))
        assert_near(found.pooled_bd, numpy_of(mean), 1e-4)
    assert (encoder.size, encoder.frames, encoder.tubelet, encoder.depth) == (32, 4, 2, 3)
    json.dumps(encoder.record)


@pytest.mark.parametrize("kind", ["vjepa2", "videomae"])
def test_video_encoders_read_clips_of_other_sizes(hf, kind, tmp_path):
    encoder = pretrained.load_frozen(save(make_model(hf, kind), tmp_path))
    for one in (encoder, encoder.with_random_params(0)):
        out = jax.eval_shape(one.apply, one.params, make_clips(48, frames=6))
        assert out.tokens_btnd.shape == (2, 3, 36, 32)


def test_pixel_statistics_of_the_folder_are_used(hf, tmp_path):
    encoder = pretrained.load_frozen(save(make_model(hf, "videomae"), tmp_path))
    stats = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stats))
    other = pretrained.load_frozen(tmp_path)
    assert other.key != encoder.key
    clips = make_clips(32, frames=4)
    # x -> (x - 0.5) / 0.5 is the identity for a clip that is normalized to have these pixels.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    shifted = ((clips / 255 - mean) / std * 0.5 + 0.5) * 255
    assert_near(apply(other, shifted).tokens_btnd, apply(encoder, clips).tokens_btnd, 1e-4)


def test_image_encoders_are_read_from_exports_and_other_sizes_are_resized(hf, tmp_path):
    folder = save(make_model(hf, "dinov2"), tmp_path / "hf")
    import_weights.import_weights("dinov2", folder, tmp_path / "a.safetensors")
    encoder = pretrained.load_frozen(tmp_path / "a.safetensors")
    other = pretrained.load_frozen(folder)
    assert encoder.key == other.key and encoder.name == "DINOv2"
    assert apply(encoder, make_clips(48)).tokens_btnd.shape == (2, 3, 36, 32)


def test_damaged_exports_of_image_encoders_are_one_sentence_errors(hf, tmp_path):
    folder = save(make_model(hf, "clip"), tmp_path / "hf")
    import_weights.import_weights("clip", folder, tmp_path / "a.safetensors")
    params, about = export.open_export(tmp_path / "a.safetensors")
    about["config"]["teacher"]["width"] = 64
    export.write_export(tmp_path / "b.safetensors", params, {"config": about["config"]})
    with pytest.raises(UserError, match="b.safetensors"):
        pretrained.load_frozen(tmp_path / "b.safetensors")
    export.write_export(tmp_path / "c.safetensors", params, {})
    with pytest.raises(UserError, match="c.safetensors does not describe a valid model"):
        pretrained.load_frozen(tmp_path / "c.safetensors")


@pytest.mark.parametrize("model_type", ["vivit", ["vjepa2"], None])
def test_folders_of_other_models_are_one_sentence_errors(hf, model_type, tmp_path):
    save(make_model(hf, "vjepa2"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(UserError, match="model_type=.* one of siglip, ") as error:
        pretrained.load_frozen(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_all_families_are_evaluated_on_the_same_videos_in_one_table(hf, tmp_path):
    for split, videos in (("train", 16), ("val", 8)):
        spec = WorldSpec(size=32, frames=4, split=split)
        write_world(spec, tmp_path / "world", videos, progress=False)
    config = probe_config.get_config("tiny")
    config.update(evaluators=("linear_probe", "knn"), controls=False, tasks=("shape",))
    config.update(train_manifest="train.csv", val_manifest="val.csv", poolings=("mean",))
    config.update(inverse_penalties=(1e-2,), batch_size=8)
    config.knn.neighbors = (3,)
    config.data.update(root=str(tmp_path / "world"), workers=0, frames=4)
    results = []
    for kind in KINDS:
        config.checkpoint = str(save(make_model(hf, kind), tmp_path / kind))
        results.append(evaluate.evaluate_checkpoint(config, tmp_path / f"results_{kind}"))
        assert results[-1]["encoder"]["kind"] == kind
    for row in (row for result in results for row in result["rows"]):
        assert row["n"] == 8 and 0 <= row["value"] <= 1
    table = tables.join_results(results)["tables"][0]
    names = [row["name"] for row in table["rows"] if row["kind"] == "encoder"]
    titles = ("SigLIP2", "CLIP", "DINOv2", "V-JEPA 2", "VideoMAE")
    assert sorted(names) == sorted(
        f"{title}, {name}" for title in titles for name in ("linear probe", "nearest neighbors")
    )


def test_workdir_of_a_run_is_not_a_folder_of_transformers(stage1_run):
    assert (stage1_run / "config.json").is_file()
    assert pretrained.load_frozen(stage1_run).name == "InternVideo-Next"
