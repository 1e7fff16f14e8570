"""Image teachers in the Hugging Face format: SigLIP 2, CLIP and DINOv2.

Each family has a table of tensor names and a function that reads the sizes from config.json. Files
from any version of transformers, with only the image tower or the full model, are converted to the
names in the table.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.weights.files import Checkpoint, LazyTensor, require_model_type, require_values
from invnext_jax.weights.layout import CONV2D, SQUEEZE, VECTOR, Rule, linear, linears, norm
from invnext_jax.weights.model_family import ModelFamily, select_tower, split_fused, square_side
from invnext_jax.weights.model_sizes import LIMITS, check_size, find_mlp_width

_LAYER = "encoder.layers.{i}"
CLIP_BLOCKS = [  # SigLIP and CLIP, image and text towers
    *linears(
        f"{_LAYER}.self_attn",
        "blocks/attn",
        {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "proj"},
    ),
    *norm(f"{_LAYER}.layer_norm1", "blocks/norm1"),
    *norm(f"{_LAYER}.layer_norm2", "blocks/norm2"),
    *linears(f"{_LAYER}.mlp", "blocks/mlp", {"fc1": "fc1", "fc2": "fc2"}),
]
SIGLIP2 = [
    *linear("embeddings.patch_embedding", "patch_embed", CONV2D),
    Rule("embeddings.position_embedding.weight", "position"),
    *CLIP_BLOCKS,
    *norm("post_layernorm", "norm"),
    Rule("head.probe", "head/probe", SQUEEZE),
    *linears("head.attention", "head/attn", {"q": "q", "k": "k", "v": "v", "out_proj": "proj"}),
    *norm("head.layernorm", "head/norm"),
    *linears("head.mlp", "head/mlp", {"fc1": "fc1", "fc2": "fc2"}),
]
CLIP = [
    Rule("embeddings.class_embedding", "class_token"),
    Rule("embeddings.patch_embedding.weight", "patch_embed/kernel", CONV2D),
    Rule("embeddings.position_embedding.weight", "position"),
    *norm("pre_layrnorm", "pre_norm"),  # this is the spelling in transformers
    *CLIP_BLOCKS,
    *norm("post_layernorm", "norm"),
]
_LAYER = "encoder.layer.{i}"
DINOV2 = [
    Rule("embeddings.cls_token", "class_token", VECTOR),
    Rule("embeddings.register_tokens", "registers", SQUEEZE),
    Rule("embeddings.position_embeddings", "position", SQUEEZE),
    *linear("embeddings.patch_embeddings.projection", "patch_embed", CONV2D),
    *linears(
        f"{_LAYER}.attention",
        "blocks/attn",
        {
            "attention.query": "q",
            "attention.key": "k",
            "attention.value": "v",
            "output.dense": "proj",
        },
    ),
    *norm(f"{_LAYER}.norm1", "blocks/norm1"),
    *norm(f"{_LAYER}.norm2", "blocks/norm2"),
    Rule(f"{_LAYER}.layer_scale1.lambda1", "blocks/scale1"),
    Rule(f"{_LAYER}.layer_scale2.lambda1", "blocks/scale2"),
    # `_adapt_dinov2` renames the projections of a gated MLP to these names.
    *linears(f"{_LAYER}.mlp", "blocks/mlp", {"fc1": "fc1", "fc2": "fc2", "gate": "gate"}),
    *norm("layernorm", "norm"),
]
_DINOV2_NAMES = {  # names of transformers 5 and of gated MLPs -> names of the table
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
    "mlp.weights_out": "mlp.fc2",
}


def _adapt_siglip2(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    fused = r"(?P<path>head\.attention\.)in_proj_(?P<leaf>weight|bias)"
    return split_fused(
        select_tower(tensors, "embeddings.patch_embedding.weight"), fused, ("q", "k", "v")
    )


def _adapt_clip(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return select_tower(tensors, "embeddings.patch_embedding.weight")


def _adapt_dinov2(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    renamed = {}
    for name, tensor in select_tower(
        tensors, "embeddings.patch_embeddings.projection.weight"
    ).items():
        for old, new in _DINOV2_NAMES.items():
            name = name.replace(f".{old}.", f".{new}.")
        renamed[name] = tensor
    fused = r"(?P<path>.*\.mlp\.)weights_in\.(?P<leaf>weight|bias)"
    return split_fused(renamed, fused, ("gate", "fc1"))


ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# Defaults in transformers for fields that are not in config.json.
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}


def _tower_config(config: Mapping[str, Any], kind: str, types: tuple[str, str]) -> dict[str, Any]:
    """Returns the config of the image tower, given that of a tower or of a full model.

    The values of `model_type` are `types[0]` for a tower and `types[1]` for a full model.
    """
    if config.get("model_type") == types[1]:
        nested = config.get("vision_config_dict")  # overrides vision_config in transformers
        nested = config.get("vision_config") or {} if nested is None else nested
        config = {"model_type": types[0], **nested}
    if config.get("model_type") in ("siglip2", "siglip2_vision_model"):
        raise UserError(
            f"config.json has model_type={config['model_type']!r}, the variable-resolution "
            "SigLIP 2 (NaFlex), which is not supported: use a fixed-resolution checkpoint such as "
            "siglip2-giant-opt-patch16-256"
        )
    require_model_type(config, kind, types)
    return dict(config)


def _fields(kind: str, config: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    require_values(config, {"num_channels": 3})
    return {
        "kind": kind,
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_width": config["intermediate_size"],
        "patch": square_side(config, "patch_size"),
        "train_size": square_side(config, "image_size"),
        "activation": "gelu",
        "registers": 0,
        "gated": False,
        **others,
    }


def _sizes_siglip2(config: Mapping[str, Any]) -> dict[str, Any]:
    tower = _tower_config(config, "siglip2", ("siglip_vision_model", "siglip"))
    supported = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True}
    require_values(tower, supported)
    return _fields("siglip2", {**_DEFAULTS, "patch_size": 16, **tower}, activation="gelu_tanh")


def _sizes_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    tower = _tower_config(config, "clip", ("clip_vision_model", "clip"))
    require_values(tower, {"layer_norm_eps": 1e-5})
    activation = tower.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"config.json has hidden_act={activation!r}, which is not one of "
            f"{', '.join(ACTIVATIONS)}: use a different checkpoint"
        )
    tower = {**_DEFAULTS, "patch_size": 32, **tower}
    return _fields("clip", tower, activation=ACTIVATIONS[activation])


def _sizes_dinov2(config: Mapping[str, Any]) -> dict[str, Any]:
    require_model_type(config, "dinov2", ("dinov2", "dinov2_with_registers"))
    require_values(config, {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True})
    has_registers = config["model_type"] == "dinov2_with_registers"
    config = {**_DEFAULTS, "patch_size": 16 if has_registers else 14, **config}
    registers = config.get("num_register_tokens", 4) if has_registers else 0
    if has_registers and not registers:
        raise UserError(
            "config.json has num_register_tokens=0, but it must be at least 1: use the config.json "
            "of the checkpoint"
        )
    check_size(config["hidden_size"], "hidden_size", "config.json", LIMITS["width"])
    ratio, gated = config.get("mlp_ratio", 4), False
    mlp_width = find_mlp_width(config["hidden_size"], ratio, "config.json")
    if config.get("use_swiglu_ffn", False):
        # The factor 2/3 keeps the parameter count, because there are three matrices instead of two.
        # The width is rounded up to a multiple of 8.
        mlp_width, gated = (int(mlp_width * 2 / 3) + 7) // 8 * 8, True
    config["intermediate_size"] = mlp_width
    return _fields("dinov2", config, registers=registers, gated=gated)


FAMILIES = {
    "siglip2": ModelFamily(SIGLIP2, _sizes_siglip2, _adapt_siglip2),
    "clip": ModelFamily(CLIP, _sizes_clip, _adapt_clip),
    "dinov2": ModelFamily(DINOV2, _sizes_dinov2, _adapt_dinov2),
}

# Names of the patch embedding in timm and DINOv2's release, and in OpenAI's CLIP and OpenCLIP.
_OTHER_LIBRARIES = re.compile(r"(.*\.)?(patch_embed\.proj|visual\.conv1)\.weight")
_EXAMPLES = {
    "siglip2": "google/siglip2-giant-opt-patch16-256",
    "clip": "openai/clip-vit-large-patch14",
    "dinov2": "facebook/dinov2-large",
}


def refuse_other_libraries(kind: str, checkpoint: Checkpoint, source: str | Path) -> None:
    """Raises a `UserError` if tensors are named as in timm, OpenCLIP or the original release."""
    name = next(filter(_OTHER_LIBRARIES.fullmatch, checkpoint.tensors), None)
    if name or not checkpoint.config.keys().isdisjoint(("architecture", "model_cfg")):
        found = f"the tensor {name}" if name else "a config.json"
        raise UserError(
            f"{source} has {found} of timm, OpenCLIP or the model's own release, but {kind} is "
            f"read in the layout of transformers: download such a folder, as {_EXAMPLES[kind]}"
        )
