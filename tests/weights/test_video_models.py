"""Video encoders: tensors that are read, sizes in config.json, pixel statistics, and errors."""

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.weights import import_weights
from invnext_jax.weights.files import Checkpoint, LazyTensor
from invnext_jax.weights.layout import pytorch_names
from invnext_jax.weights.video_models import FAMILIES

PATCHES = {
    "vjepa2": "encoder.embeddings.patch_embeddings.proj.weight",
    "videomae": "embeddings.patch_embeddings.projection.weight",
}


def unreadable(names):
    def read():
        raise AssertionError("nothing may be read before names and shapes are checked")

    return {name: LazyTensor((4,), read) for name in names}


@pytest.mark.parametrize(
    ("kind", "prefix", "others"),
    [
        ("vjepa2", "", ["predictor.layer.0.norm1.weight"]),
        ("vjepa2", "vjepa2.", ["vjepa2.predictor.proj.bias", "pooler.query_tokens"]),
        ("videomae", "videomae.", ["decoder.norm.weight", "mask_token", "classifier.bias"]),
    ],
)
def test_other_parts_of_a_model_are_dropped(kind, prefix, others):
    names = [f"{prefix}{name}" for name in (PATCHES[kind], "encoder.surprise")]
    found = FAMILIES[kind].adapt(unreadable([*names, *others]))
    assert set(found) == {PATCHES[kind], "encoder.surprise"}  # the strict check will report it


def test_keys_of_videomae_get_zeros_as_bias():
    layer = "encoder.layer.0.attention.attention"
    names = [PATCHES["videomae"], f"{layer}.key.weight", f"{layer}.q_bias", f"{layer}.v_bias"]
    found = FAMILIES["videomae"].adapt(unreadable(names))
    biases = {f"{layer}.{part}.bias" for part in ("query", "key", "value")}
    assert set(found) == {PATCHES["videomae"], f"{layer}.key.weight"} | biases
    np.testing.assert_array_equal(found[f"{layer}.key.bias"].read(), np.zeros(4))


@pytest.mark.parametrize("kind", FAMILIES)
def test_rules_are_one_to_one(kind):
    rules = FAMILIES[kind].rules
    assert len({rule.name for rule in rules}) == len({rule.path for rule in rules}) == len(rules)
    assert len(dict(pytorch_names({rule.path: (1,) for rule in rules}, rules))) == len(rules)


VJEPA2 = {"model_type": "vjepa2"}
VIDEOMAE = {"model_type": "videomae"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type=None"),
        ({"model_type": "vivit"}, "model_type='vivit'"),
        ({**VJEPA2, "hidden_act": "relu"}, "hidden_act='relu', but only 'gelu'"),
        ({**VJEPA2, "qkv_bias": False}, "qkv_bias=False"),
        ({**VJEPA2, "in_chans": 1}, "in_chans=1"),
        ({**VJEPA2, "layer_norm_eps": "tiny"}, "layer_norm_eps='tiny'"),
        ({**VJEPA2, "hidden_size": 2**40}, "hidden_size"),
        ({**VJEPA2, "mlp_ratio": 1e9}, "mlp_ratio=1000000000.0, which is not between 0 and 64"),
        ({**VJEPA2, "mlp_ratio": "7"}, "mlp_ratio=7, which is not between 0 and 64"),
        ({**VJEPA2, "num_hidden_layers": -1}, "depth"),
        ({**VJEPA2, "tubelet_size": 3}, "frames=64 is not a multiple of its tubelet=3"),
        ({**VJEPA2, "num_attention_heads": 0}, "not a multiple of its heads=0"),
        ({**VJEPA2, "patch_size": [16, 8]}, "only squares"),
        ({**VIDEOMAE, "qkv_bias": False}, "qkv_bias=False"),
        ({**VIDEOMAE, "qv_bias": False}, "qv_bias=False"),
        ({**VIDEOMAE, "num_channels": 4}, "num_channels=4"),
        ({**VIDEOMAE, "image_size": 225}, "train_size=225 is not a multiple of its patch=16"),
        ({**VIDEOMAE, "num_frames": 4096, "image_size": 4096}, "patches, but at most"),
    ],
)
def test_config_of_another_model_is_refused_in_one_sentence(config, message):
    kind = "videomae" if config.get("model_type") == "videomae" else "vjepa2"
    with pytest.raises(UserError, match=message) as error:
        FAMILIES[kind].sizes(config)
    assert "\n" not in str(error.value)


def test_missing_tensors_are_listed():
    tensors = unreadable([PATCHES["vjepa2"]])
    with pytest.raises(UserError, match=r"missing +encoder.layer.23.mlp.fc2.bias"):
        import_weights.read_tubelet_encoder("vjepa2", Checkpoint(tensors, VJEPA2), "folder")
    with pytest.raises(UserError, match="0 tensors embeddings.patch_embeddings.projection.weight"):
        import_weights.read_tubelet_encoder("videomae", Checkpoint(tensors, VIDEOMAE), "folder")
