"""V-JEPA 2 and VideoMAE that are read from files of transformers equal the original models."""

import json
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from parity import import_transformers, numpy_of, randomise, save

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


@pytest.fixture(scope="module")
def hf():
    torch, transformers = import_transformers()
    return SimpleNamespace(torch=torch, models=transformers)


def make_vjepa2(hf, size=32, frames=8, name="VJEPA2Model", **changes):
    config = hf.models.VJEPA2Config(
        **{**TINY, "crop_size": size, "frames_per_clip": frames, "mlp_ratio": 1.5, **changes},
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_pooler_layers=1,
    )
    return randomise(hf.torch, getattr(hf.models, name)(config))


def make_videomae(hf, size=32, frames=8, name="VideoMAEModel", **changes):
    config = hf.models.VideoMAEConfig(
        **{**TINY, "image_size": size, "num_frames": frames, "intermediate_size": 48, **changes},
        decoder_num_hidden_layers=1,
        decoder_hidden_size=24,
        decoder_num_attention_heads=2,
    )
    return randomise(hf.torch, getattr(hf.models, name)(config))


def encode(folder, video_bthwc):
    """Returns the encoder's output with the output of every layer."""
    checkpoint = open_checkpoint(folder)
    params, sizes = read_tubelet_encoder(checkpoint.config["model_type"], checkpoint, folder)
    taps = range(1, sizes["depth"] + 1)
    module = tubelet_encoder.from_sizes(sizes, taps)
    return jax.jit(module.apply)({"params": params}, video_bthwc)


def make_clips(frames, height, width):
    shape = (2, frames, height, width, 3)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def expected_states(hf, tower, video_bthwc, **options):
    """Returns the torch model's output and the output of every layer."""
    with hf.torch.no_grad():
        pixels = hf.torch.from_numpy(np.moveaxis(video_bthwc, -1, 2).copy())
        out = tower(pixels, output_hidden_states=True, **options)
    return numpy_of(out.last_hidden_state), [numpy_of(x) for x in out.hidden_states[1:]]


def assert_parity(hf, folder, tower, video_bthwc, **options):
    out = encode(folder, video_bthwc)
    last, states = expected_states(hf, tower, video_bthwc, **options)
    assert len(out.taps_lbnd) == len(states) == 3
    for layer, state in enumerate(states):
        assert_near(out.taps_lbnd[layer], state, 1e-4)
    assert_near(out.tokens_bnd, last, 1e-4)
    return out


@pytest.mark.parametrize(
    ("width", "heads"),
    [(32, 2), (28, 2), (22, 2), (20, 4)],  # 1, 2, 5 and 5 channels of a head are not rotated
)
def test_vjepa2_equals_transformers(hf, width, heads, tmp_path):
    model = make_vjepa2(hf, hidden_size=width, num_attention_heads=heads)
    clips = make_clips(8, 32, 32)
    assert_parity(hf, save(model, tmp_path), model, clips, skip_predictor=True)


@pytest.mark.parametrize(("size", "frames"), [(32, 2), (48, 4), (16, 12)])
def test_vjepa2_rotates_by_the_grid_of_the_clip(hf, size, frames, tmp_path):
    folder = save(make_vjepa2(hf), tmp_path)
    # The positions of transformers follow the size in the config, and no parameter does.
    other = make_vjepa2(hf, size=size, frames=frames)
    assert_parity(hf, folder, other, make_clips(frames, size, size), skip_predictor=True)


def test_vjepa2_in_classification_model(hf, tmp_path):
    model = make_vjepa2(hf, name="VJEPA2ForVideoClassification")
    clips = make_clips(8, 32, 32)
    out = assert_parity(hf, save(model, tmp_path), model.vjepa2, clips, skip_predictor=True)
    assert out.pooled_bd is None


@pytest.mark.parametrize("mean_pooling", [True, False])
@pytest.mark.parametrize("width", [32, 18])
def test_videomae_equals_transformers(hf, width, mean_pooling, tmp_path):
    model = make_videomae(hf, hidden_size=width, use_mean_pooling=mean_pooling)
    assert_parity(hf, save(model, tmp_path), model, make_clips(8, 32, 32))


def test_videomae_in_pretraining_model(hf, tmp_path):
    model = make_videomae(hf, name="VideoMAEForPreTraining", use_mean_pooling=False)
    out = assert_parity(hf, save(model, tmp_path), model.videomae, make_clips(8, 32, 32))
    assert out.pooled_bd is None


def test_videomae_in_classification_model_pools_the_input_of_the_classifier(hf, tmp_path):
    model = make_videomae(hf, name="VideoMAEForVideoClassification", num_labels=32)
    with hf.torch.no_grad():
        model.classifier.weight.copy_(hf.torch.eye(32))
        model.classifier.bias.zero_()
    clips = make_clips(8, 32, 32)
    out = assert_parity(hf, save(model, tmp_path), model.videomae, clips)
    with hf.torch.no_grad():
        logits = model(hf.torch.from_numpy(np.moveaxis(clips, -1, 2).copy())).logits
    assert_near(out.pooled_bd, numpy_of(logits), 1e-4)


@pytest.mark.parametrize("make", [make_vjepa2, make_videomae])
def test_small_activations_expose_the_epsilon_of_every_norm(hf, make, tmp_path):
    norms = {"layer_norm_eps": 1e-3}
    if make is make_videomae:
        norms["use_mean_pooling"] = False
    model = make(hf, **norms)
    with hf.torch.no_grad():
        for name, parameter in model.named_parameters():
            if "patch_embeddings" in name or "proj." in name or "dense" in name or "fc2" in name:
                parameter.mul_(3e-2)
    options = {"skip_predictor": True} if make is make_vjepa2 else {}
    assert_parity(hf, save(model, tmp_path), model, 0 * make_clips(8, 32, 32), **options)


def test_both_naming_schemes_of_videomae_give_the_same_parameters(hf, tmp_path):
    folder = save(make_videomae(hf, name="VideoMAEForVideoClassification"), tmp_path)
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


@pytest.mark.parametrize("kind", FAMILIES)
def test_missing_sizes_get_the_defaults_of_transformers(hf, kind):
    config = {"vjepa2": hf.models.VJEPA2Config, "videomae": hf.models.VideoMAEConfig}[kind]()
    content = json.loads(config.to_json_string())
    assert FAMILIES[kind].sizes({"model_type": kind}) == FAMILIES[kind].sizes(content)


def published_config(hf, kind, name):
    width, depth, heads, mlp, patch, size, frames = {"vjepa2": VJEPA2, "videomae": VIDEOMAE}[kind][
        name
    ]
    common = {
        **{"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads},
        **{"patch_size": patch},
    }
    if kind == "vjepa2":
        return hf.models.VJEPA2Config(
            **common, mlp_ratio=mlp, crop_size=size, frames_per_clip=frames
        )
    return hf.models.VideoMAEConfig(
        **common, intermediate_size=mlp, image_size=size, num_frames=frames
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("vjepa2", name) for name in VJEPA2), *(("videomae", name) for name in VIDEOMAE)],
)
def test_published_sizes_have_the_shapes_of_the_encoder(hf, kind, name):
    config = published_config(hf, kind, name)
    make = {"vjepa2": hf.models.VJEPA2Model, "videomae": hf.models.VideoMAEForVideoClassification}
    with hf.torch.device("meta"):
        state = make[kind](config).state_dict()
    family = FAMILIES[kind]
    sizes = {**family.sizes(json.loads(config.to_json_string())), "pool_norm": kind == "videomae"}
    clip = jnp.zeros((1, sizes["tubelet"], sizes["patch"], sizes["patch"], 3))
    module = tubelet_encoder.from_sizes(sizes)
    params = jax.eval_shape(module.init, jax.random.key(0), clip)["params"]
    shapes = leaf_shapes(flax.linen.unbox(params))
    expected = {
        name: pytorch_shape(shapes[leaf.path], leaf)
        for name, leaf in pytorch_names(shapes, family.rules)
    }
    tensors = {name: LazyTensor(tuple(x.shape), None) for name, x in state.items()}
    assert {name: x.shape for name, x in family.adapt(tensors).items()} == expected
