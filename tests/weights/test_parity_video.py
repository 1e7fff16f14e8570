"""V-JEPA 2 and VideoMAE that are read from files of transformers equal the original models."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from parity import numpy_of
from reference_models import Model, draw, unfold_names

from invnext_jax.models import tubelet_encoder
from invnext_jax.weights.files import LazyTensor, open_checkpoint
from invnext_jax.weights.import_weights import read_tubelet_encoder
from invnext_jax.weights.layout import pytorch_names
from invnext_jax.weights.match import leaf_shapes, pytorch_shape
from invnext_jax.weights.video_models import FAMILIES

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
# Published sizes: width, layers, heads, MLP, patch, size, frames.
VJEPA2 = {
    "large": (1024, 24, 16, 4.0, 16, 256, 64),
    "huge": (1280, 32, 16, 4.0, 16, 256, 64),
    "giant": (1408, 40, 22, 48 / 11, 16, 256, 64),
    "giant384": (1408, 40, 22, 48 / 11, 16, 384, 64),
}
VIDEOMAE = {
    "small": (384, 12, 6, 1536, 16, 224, 16),
    "base": (768, 12, 12, 3072, 16, 224, 16),
    "large": (1024, 24, 16, 4096, 16, 224, 16),
    "huge": (1280, 32, 16, 5120, 16, 224, 16),
}


def vjepa2(size=24, frames=6, name="VJEPA2Model", **changes):
    options = {
        **{**TINY, "crop_size": size, "frames_per_clip": frames, "mlp_ratio": 1.5, **changes},
        **{"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
        "num_pooler_layers": 1,
    }
    return Model(name, options)


def videomae(size=24, frames=6, name="VideoMAEModel", **changes):
    options = {
        **{**TINY, "image_size": size, "num_frames": frames, "intermediate_size": 48, **changes},
        **{"decoder_num_hidden_layers": 1, "decoder_hidden_size": 24},
        "decoder_num_attention_heads": 2,
    }
    return Model(name, options)


def encode(folder, video_bthwc):
    """Returns the encoder's output with the output of every layer."""
    checkpoint = open_checkpoint(folder)
    params, sizes = read_tubelet_encoder(checkpoint.config["model_type"], checkpoint, folder)
    taps = range(1, sizes["depth"] + 1)
    module = tubelet_encoder.from_sizes(sizes, taps)
    return jax.jit(module.apply)({"params": params}, video_bthwc)


def make_clips(frames, height, width):
    return draw((2, frames, height, width, 3), 1)


def torch_pixels(hf, video_bthwc):
    return hf.torch.from_numpy(np.moveaxis(video_bthwc, -1, 2).copy())


def torch_states(hf, tower, video_bthwc):
    """Returns the torch model's output and the output of every layer."""
    options = {"skip_predictor": True} if hasattr(tower, "predictor") else {}
    out = tower(torch_pixels(hf, video_bthwc), output_hidden_states=True, **options)
    states_lbnd = np.stack([numpy_of(x) for x in out.hidden_states[1:]])
    return {"last": numpy_of(out.last_hidden_state), "states": states_lbnd}


def assert_parity(reference, folder, model, video_bthwc, tower=None):
    """Compares with a model, or with the attribute `tower` of it."""

    def compute(hf):
        loaded = model.load(hf, folder)
        return torch_states(hf, getattr(loaded, tower) if tower else loaded, video_bthwc)

    out, expected = encode(folder, video_bthwc), reference(compute)
    assert len(out.taps_lbnd) == len(expected["states"]) == 3
    for layer, state in enumerate(expected["states"]):
        assert_near(out.taps_lbnd[layer], state, 1e-4)
    assert_near(out.tokens_bnd, expected["last"], 1e-4)
    return out


@pytest.mark.parametrize(
    ("width", "heads"),
    [(32, 2), (28, 2), (22, 2), (20, 4)],  # 1, 2, 5 and 5 channels of a head are not rotated
)
def test_vjepa2_equals_transformers(reference, references, width, heads, tmp_path):
    model = vjepa2(hidden_size=width, num_attention_heads=heads)
    assert_parity(reference, references.save(model, tmp_path), model, make_clips(6, 24, 24))


@pytest.mark.parametrize(("size", "frames"), [(24, 2), (40, 4), (16, 12)])
def test_vjepa2_rotates_by_the_grid_of_the_clip(reference, references, size, frames, tmp_path):
    folder = references.save(vjepa2(), tmp_path)
    # The positions of transformers follow the size in the config, and no parameter does.
    other = vjepa2(size=size, frames=frames)
    assert_parity(reference, folder, other, make_clips(frames, size, size))


def test_vjepa2_in_classification_model(reference, references, tmp_path):
    model = vjepa2(name="VJEPA2ForVideoClassification")
    folder = references.save(model, tmp_path)
    out = assert_parity(reference, folder, model, make_clips(6, 24, 24), tower="vjepa2")
    assert out.pooled_bd is None


@pytest.mark.parametrize("mean_pooling", [True, False])
@pytest.mark.parametrize("width", [32, 18])
def test_videomae_equals_transformers(reference, references, width, mean_pooling, tmp_path):
    model = videomae(hidden_size=width, use_mean_pooling=mean_pooling)
    assert_parity(reference, references.save(model, tmp_path), model, make_clips(6, 24, 24))


def test_videomae_in_pretraining_model(reference, references, tmp_path):
    model = videomae(name="VideoMAEForPreTraining", use_mean_pooling=False)
    folder = references.save(model, tmp_path)
    out = assert_parity(reference, folder, model, make_clips(6, 24, 24), tower="videomae")
    assert out.pooled_bd is None


def test_videomae_in_classification_model_pools_the_input_of_the_classifier(
    reference, references, tmp_path
):
    model = videomae(name="VideoMAEForVideoClassification", num_labels=32)
    folder, clips = references.save(model, tmp_path), make_clips(6, 24, 24)

    def classifier_inputs(hf):
        loaded = model.load(hf, folder)
        loaded.classifier = hf.torch.nn.Identity()
        return numpy_of(loaded(torch_pixels(hf, clips)).logits)

    out = assert_parity(reference, folder, model, clips, tower="videomae")
    assert_near(out.pooled_bd, reference(classifier_inputs, "pooled"), 1e-4)


@pytest.mark.parametrize("make", [vjepa2, videomae])
def test_small_activations_expose_the_epsilon_of_every_norm(reference, references, make, tmp_path):
    norms = {"layer_norm_eps": 1e-3}
    if make is videomae:
        norms["use_mean_pooling"] = False
    small = ("patch_embeddings", "proj.", "dense", "fc2")
    model = dataclasses.replace(make(**norms), small=small, factor=3e-2)
    clips = np.zeros_like(make_clips(6, 24, 24))
    assert_parity(reference, references.save(model, tmp_path), model, clips)


def test_both_naming_schemes_of_videomae_give_the_same_parameters(references, tmp_path):
    folder = references.save(videomae(name="VideoMAEForVideoClassification"), tmp_path)
    checkpoint = open_checkpoint(folder)
    layer = "videomae.encoder.layer.0.attention.attention"
    assert {f"{layer}.q_bias", f"{layer}.v_bias"} <= checkpoint.tensors.keys()
    tensors = {  # names of the modules of transformers 5
        name.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): tensor
        for name, tensor in checkpoint.tensors.items()
    }
    config = {**checkpoint.config, "qkv_bias": True}
    del config["qv_bias"]
    other = checkpoint._replace(tensors=tensors, config=config)
    found = read_tubelet_encoder("videomae", other, "x")
    expected = read_tubelet_encoder("videomae", checkpoint, "x")
    assert found[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])


@pytest.mark.parametrize(("kind", "name"), [("vjepa2", "VJEPA2"), ("videomae", "VideoMAE")])
def test_missing_sizes_get_the_defaults_of_transformers(reference, kind, name):
    config = reference(lambda hf: getattr(hf.models, f"{name}Config")().to_dict())
    assert FAMILIES[kind].sizes({"model_type": kind}) == FAMILIES[kind].sizes(config)


def published_model(kind, name):
    published = {"vjepa2": VJEPA2, "videomae": VIDEOMAE}[kind]
    width, depth, heads, mlp, patch, size, frames = published[name]
    common = {
        **{"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads},
        **{"patch_size": patch},
    }
    if kind == "vjepa2":
        sizes = {"mlp_ratio": mlp, "crop_size": size, "frames_per_clip": frames}
        return Model("VJEPA2Model", {**common, **sizes})
    sizes = {"intermediate_size": mlp, "image_size": size, "num_frames": frames}
    return Model("VideoMAEForVideoClassification", {**common, **sizes})


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("vjepa2", name) for name in VJEPA2), *(("videomae", name) for name in VIDEOMAE)],
)
def test_published_sizes_have_the_shapes_of_the_encoder(reference, kind, name):
    about = reference(published_model(kind, name).describe_modules)
    family = FAMILIES[kind]
    sizes = {**family.sizes(about["config"]), "pool_norm": kind == "videomae"}
    clip = jnp.zeros((1, sizes["tubelet"], sizes["patch"], sizes["patch"], 3))
    module = tubelet_encoder.from_sizes(sizes)
    params = jax.eval_shape(module.init, jax.random.key(0), clip)["params"]
    shapes = leaf_shapes(flax.linen.unbox(params))
    expected = {
        name: pytorch_shape(shapes[leaf.path], leaf)
        for name, leaf in pytorch_names(shapes, family.rules)
    }
    found = unfold_names(about["tensors"])
    tensors = {name: LazyTensor(shape, None) for name, shape in found.items()}
    assert {name: x.shape for name, x in family.adapt(tensors).items()} == expected
