"""Encoders of other projects return the outputs of transformers, and share one result table."""

import json

import jax
import numpy as np
import pytest
from golden_cases import assert_near
from parity import numpy_of
from reference_models import Model

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


def make_clips(size, frames=3, seed=0):
    rng = np.random.RandomState(seed)  # the same numbers in all NumPy versions
    return rng.randint(0, 256, (2, frames, size, size, 3), dtype=np.uint8)


def apply(encoder, clips, layers=()):
    return jax.jit(encoder.apply, static_argnums=2)(encoder.params, clips, layers)


MODELS = {
    "siglip2": Model("SiglipVisionModel", {**IMAGE, "intermediate_size": 48}),
    "clip": Model("CLIPVisionModel", {**IMAGE, "intermediate_size": 48}),
    "dinov2": Model("Dinov2WithRegistersModel", {**IMAGE, "num_register_tokens": 2}),
    "vjepa2": Model(
        "VJEPA2Model",
        {
            **{**TINY, "patch_size": 8, "crop_size": 32, "frames_per_clip": 4},
            **{"pred_hidden_size": 24, "pred_num_hidden_layers": 1},
        },
    ),
    "videomae": Model(
        "VideoMAEForVideoClassification",
        {**IMAGE, "num_frames": 4, "intermediate_size": 48, "num_labels": 5},
    ),
}


def make_pixels(hf, clips, kind):
    """Returns the clips as torch pixels [b t c h w], normalized for this kind of encoder."""
    known = hf.models.image_utils
    mean, std = (np.array(getattr(known, f"{STATISTICS[kind]}_{x}")) for x in ("MEAN", "STD"))
    pixels = np.moveaxis((clips / 255 - mean) / std, -1, 2).astype(np.float32)
    return hf.torch.from_numpy(pixels.copy())


@pytest.mark.parametrize("kind", ["siglip2", "clip", "dinov2"])
def test_image_encoders_equal_transformers_on_every_frame(reference, references, kind, tmp_path):
    folder, clips = references.save(MODELS[kind], tmp_path), make_clips(32)

    def compute(hf):
        pixels = make_pixels(hf, clips, kind).flatten(0, 1)
        out = MODELS[kind].load(hf, folder)(pixels, output_hidden_states=True)
        states = {f"layer{layer}": out.hidden_states[layer + 1] for layer in (2, 0)}
        states |= {"last": out.last_hidden_state, "pooled": out.pooler_output[:, None]}
        return {name: numpy_of(x).reshape(2, 3, -1, 32) for name, x in states.items()}

    encoder, expected = pretrained.load_frozen(folder), reference(compute)
    found = apply(encoder, clips, (2, 0))
    skip = {"siglip2": 0, "clip": 1, "dinov2": 3}[kind]
    assert_near(found.tokens_btnd, expected["last"][:, :, skip:], 1e-4)
    assert_near(found.pooled_bd, expected["pooled"][:, :, 0].mean(axis=1), 1e-4)
    if kind == "siglip2":
        assert found.class_bkd is None
    else:
        assert_near(found.class_bkd, expected["last"][:, :, 0], 1e-4)
    for place, layer in enumerate((2, 0)):
        assert_near(found.layers_lbtnd[place], expected[f"layer{layer}"][:, :, skip:], 1e-4)


@pytest.mark.parametrize("kind", ["vjepa2", "videomae"])
def test_video_encoders_equal_transformers(reference, references, kind, tmp_path):
    folder, clips = references.save(MODELS[kind], tmp_path), make_clips(32, frames=4)

    def compute(hf):
        model = MODELS[kind].load(hf, folder)
        tower = model if kind == "vjepa2" else model.videomae
        options = {"skip_predictor": True} if kind == "vjepa2" else {}
        out = tower(make_pixels(hf, clips, kind), output_hidden_states=True, **options)
        states = {f"layer{layer}": out.hidden_states[layer + 1] for layer in (2, 0)}
        states["last"] = out.last_hidden_state
        if kind == "videomae":
            states["pooled"] = model.fc_norm(out.last_hidden_state.mean(1))
        return {name: numpy_of(x) for name, x in states.items()}

    encoder, expected = pretrained.load_frozen(folder), reference(compute)
    found = apply(encoder, clips, (2, 0, 2))
    assert_near(found.tokens_btnd, expected["last"].reshape(2, 2, 16, 32), 1e-4)
    for place, layer in enumerate((2, 0, 2)):
        state = expected[f"layer{layer}"].reshape(2, 2, 16, 32)
        assert_near(found.layers_lbtnd[place], state, 1e-4)
    assert found.class_bkd is None
    if kind == "vjepa2":
        assert found.pooled_bd is None and encoder.pool_width == 0
    else:
        assert_near(found.pooled_bd, expected["pooled"], 1e-4)
    assert (encoder.size, encoder.frames, encoder.tubelet, encoder.depth) == (32, 4, 2, 3)
    json.dumps(encoder.record)


@pytest.mark.parametrize("kind", ["vjepa2", "videomae"])
def test_video_encoders_read_clips_of_other_sizes(references, kind, tmp_path):
    encoder = pretrained.load_frozen(references.save(MODELS[kind], tmp_path))
    for one in (encoder, encoder.with_random_params(0)):
        out = jax.eval_shape(one.apply, one.params, make_clips(48, frames=6))
        assert out.tokens_btnd.shape == (2, 3, 36, 32)


def test_pixel_statistics_of_the_folder_are_used(references, tmp_path):
    encoder = pretrained.load_frozen(references.save(MODELS["videomae"], tmp_path))
    stats = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stats))
    other = pretrained.load_frozen(tmp_path)
    assert other.key != encoder.key
    clips = make_clips(32, frames=4)
    # x -> (x - 0.5) / 0.5 is the identity for a clip that is normalized to have these pixels.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    shifted = ((clips / 255 - mean) / std * 0.5 + 0.5) * 255
    assert_near(apply(other, shifted).tokens_btnd, apply(encoder, clips).tokens_btnd, 1e-4)


def test_image_encoders_are_read_from_exports_and_other_sizes_are_resized(references, tmp_path):
    folder = references.save(MODELS["dinov2"], tmp_path / "hf")
    import_weights.import_weights("dinov2", folder, tmp_path / "a.safetensors")
    encoder = pretrained.load_frozen(tmp_path / "a.safetensors")
    other = pretrained.load_frozen(folder)
    assert encoder.key == other.key and encoder.name == "DINOv2"
    assert apply(encoder, make_clips(48)).tokens_btnd.shape == (2, 3, 36, 32)


def test_damaged_exports_of_image_encoders_are_one_sentence_errors(references, tmp_path):
    folder = references.save(MODELS["clip"], tmp_path / "hf")
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
def test_folders_of_other_models_are_one_sentence_errors(references, model_type, tmp_path):
    references.save(MODELS["vjepa2"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(UserError, match="model_type=.* one of siglip, ") as error:
        pretrained.load_frozen(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_all_families_are_evaluated_on_the_same_videos_in_one_table(references, tmp_path):
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
        config.checkpoint = str(references.save(MODELS[kind], tmp_path / kind))
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
