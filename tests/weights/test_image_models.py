"""Image models: naming schemes of their files, sizes in config.json, and errors."""

import numpy as np
import pytest

from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyTensor
from invnext_jax.weights.image_models import FAMILIES
from invnext_jax.weights.layout import Rule, pytorch_names

SHAPES = {  # tensors of a tower with one layer; no data is read
    "siglip2": {"embeddings.patch_embedding.weight": (4, 3, 2, 2), "head.probe": (1, 1, 4)},
    "clip": {"embeddings.patch_embedding.weight": (4, 3, 2, 2), "pre_layrnorm.bias": (4,)},
    "dinov2": {
        "embeddings.patch_embeddings.projection.weight": (4, 3, 2, 2),
        "layernorm.bias": (4,),
    },
}


def unreadable(shapes):
    def read():
        raise AssertionError("nothing may be read before names and shapes are checked")

    return {name: LazyTensor(shape, read) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(
    "prefix", ["", "vision_model.", "model.vision_model.", "dinov2.", "vision_tower.vision_model."]
)
def test_prefixes_are_stripped_and_other_towers_dropped(kind, prefix):
    shapes = {f"{prefix}{name}": shape for name, shape in SHAPES[kind].items()}
    shapes[f"{prefix}embeddings.position_ids"] = (1, 5)
    shapes[f"{prefix}embeddings.mask_token"] = (1, 4)
    if prefix:
        others = ("text_model.embeddings.token_embedding.weight", "logit_scale", "logit_bias")
        others += ("visual_projection.weight", "text_projection.weight", "classifier.weight")
        shapes |= {name: (4,) for name in others}
    found = FAMILIES[kind].adapt(unreadable(shapes))
    assert {name: tensor.shape for name, tensor in found.items()} == SHAPES[kind]


def test_unknown_tensor_of_the_tower_is_kept_for_the_strict_check():
    shapes = {**SHAPES["clip"], "surprise.weight": (4,)}
    assert "surprise.weight" in FAMILIES["clip"].adapt(unreadable(shapes))


def test_fused_projections_are_split_without_reading():
    array = np.arange(12.0).reshape(6, 2)
    anchor = {"embeddings.patch_embedding.weight": LazyTensor((2, 3, 1, 1), None)}
    fused = {"head.attention.in_proj_weight": LazyTensor((6, 2), lambda: array)}
    found = FAMILIES["siglip2"].adapt(anchor | fused)
    for i, part in enumerate("qkv"):
        tensor = found[f"head.attention.{part}.weight"]
        assert tensor.shape == (2, 2)
        np.testing.assert_array_equal(tensor.read(), array[2 * i : 2 * i + 2])


def test_both_naming_schemes_of_dinov2_give_the_same_names():
    layer = "encoder.layer.0"
    anchor = {"embeddings.patch_embeddings.projection.weight": (4, 3, 2, 2)}
    attention = {
        "attention.query": "q_proj",
        "attention.key": "k_proj",
        "attention.value": "v_proj",
        "output.dense": "o_proj",
    }
    old = {f"{layer}.attention.{name}.weight": (4, 4) for name in attention}
    old |= {f"{layer}.mlp.weights_in.weight": (16, 4), f"{layer}.mlp.weights_out.weight": (4, 8)}
    new = {f"{layer}.attention.{name}.weight": (4, 4) for name in attention.values()}
    new |= {f"{layer}.mlp.{name}_proj.weight": (8, 4) for name in ("gate", "up")}
    new[f"{layer}.mlp.down_proj.weight"] = (4, 8)
    shapes = [
        {name: t.shape for name, t in FAMILIES["dinov2"].adapt(unreadable(anchor | names)).items()}
        for names in (old, new)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0][f"{layer}.mlp.gate.weight"] == (8, 4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_rules_are_one_to_one(kind):
    rules = FAMILIES[kind].rules
    assert len({rule.name for rule in rules}) == len({rule.path for rule in rules}) == len(rules)
    shapes = {rule.path: (1,) for rule in rules}
    assert len(dict(pytorch_names(shapes, rules))) == len(rules)
    assert all(isinstance(rule, Rule) for rule in rules)


def test_file_of_another_kind_is_an_error():
    with pytest.raises(UserError, match="0 tensors embeddings.patch_embedding.weight"):
        FAMILIES["clip"].adapt(unreadable({"layers.0.attn.Wqkv.weight": (3, 1)}))
    anchor = "embeddings.patch_embedding.weight"
    with pytest.raises(UserError, match="2 tensors embeddings.patch_embedding.weight"):
        FAMILIES["siglip2"].adapt(unreadable({f"a.{anchor}": (1,), f"b.{anchor}": (1,)}))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("siglip2", {}, "model_type=None, but --kind=siglip2 needs siglip_vision_model or siglip"),
        ("siglip2", {"model_type": "bert"}, "model_type='bert'"),
        ("siglip2", {"model_type": "clip"}, "model_type='clip'"),
        ("siglip2", {"model_type": "siglip2_vision_model"}, "NaFlex"),
        ("siglip2", {"model_type": "siglip2"}, "NaFlex"),
        (
            "siglip2",
            {"model_type": "siglip", "vision_config": {"model_type": "siglip2_vision_model"}},
            "NaFlex",
        ),
        (
            "siglip2",
            {"model_type": "siglip", "vision_config": {"vision_use_head": False}},
            "vision_use_head=False, but only True",
        ),
        ("siglip2", {"model_type": "siglip_vision_model", "hidden_act": "relu"}, "hidden_act"),
        ("clip", {"model_type": "siglip"}, "--kind=clip needs clip_vision_model or clip"),
        ("clip", {"model_type": "clip_vision_model", "hidden_act": "relu"}, "hidden_act='relu'"),
        ("clip", {"model_type": "clip_vision_model", "layer_norm_eps": 1e-6}, "layer_norm_eps"),
        (
            "clip",
            {"model_type": "clip_vision_model", "image_size": [224, 256]},
            "only squares",
        ),
        ("clip", {"model_type": "clip_vision_model", "num_channels": 1}, "num_channels=1"),
        ("dinov2", {"model_type": "vit"}, "--kind=dinov2 needs dinov2 or dinov2_with_registers"),
        ("dinov2", {"model_type": "dinov2", "qkv_bias": False}, "qkv_bias=False"),
        (
            "dinov2",
            {"model_type": "dinov2_with_registers", "num_register_tokens": 0},
            "num_register_tokens=0",
        ),
        ("dinov2", {"model_type": "dinov2", "mlp_ratio": "7"}, "mlp_ratio=7, which is not between"),
    ],
)
def test_config_of_another_model_is_refused(kind, config, message):
    with pytest.raises(UserError, match=message) as error:
        FAMILIES[kind].sizes(config)
    assert "\n" not in str(error.value)


def test_sizes_are_read_from_nested_configs_and_defaults():
    sizes = FAMILIES["siglip2"].sizes(
        {"model_type": "siglip", "vision_config": {"image_size": 256, "hidden_size": 1024}}
    )
    assert sizes == {
        "kind": "siglip2",
        "width": 1024,
        "depth": 12,
        "heads": 12,
        "mlp_width": 3072,
        "patch": 16,
        "train_size": 256,
        "activation": "gelu_tanh",
        "registers": 0,
        "gated": False,
    }
    old = {"model_type": "clip", "vision_config": {}, "vision_config_dict": {"patch_size": 14}}
    assert FAMILIES["clip"].sizes(old)["patch"] == 14
    giant = {"model_type": "dinov2", "hidden_size": 1536, "use_swiglu_ffn": True}
    sizes = FAMILIES["dinov2"].sizes(giant)
    assert sizes["gated"] and sizes["mlp_width"] == 4096 and sizes["patch"] == 14
    registers = FAMILIES["dinov2"].sizes({"model_type": "dinov2_with_registers"})
    assert registers["registers"] == 4 and registers["patch"] == 16
