"""Video encoders in the Hugging Face format: V-JEPA 2 and VideoMAE.

Only the encoder is read. The predictor and attentive pooler of V-JEPA 2, the decoder of VideoMAE,
and classifiers are ignored. The norm before the classifier of a fine-tuned VideoMAE belongs to the
encoder.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyTensor, require_model_type, require_values
from invnext_jax.weights.layout import Layout, linear, linears, norm
from invnext_jax.weights.model_family import ModelFamily, select_tower, square_side
from invnext_jax.weights.model_sizes import LIMITS, check_size, check_sizes, find_mlp_width

_TUBELETS = Layout(  # [out c s r q] <-> [s r q c out]
    lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)
)
_LAYER = "encoder.layer.{i}"
VJEPA2 = [
    *linear("encoder.embeddings.patch_embeddings.proj", "patch_embed", _TUBELETS),
    *norm(f"{_LAYER}.norm1", "blocks/norm1"),
    *linears(
        f"{_LAYER}.attention",
        "blocks/attn",
        {"query": "q", "key": "k", "value": "v", "proj": "proj"},
    ),
    *norm(f"{_LAYER}.norm2", "blocks/norm2"),
    *linears(f"{_LAYER}.mlp", "blocks/mlp", {"fc1": "fc1", "fc2": "fc2"}),
    *norm("encoder.layernorm", "norm"),
]
VIDEOMAE = [
    *linear("embeddings.patch_embeddings.projection", "patch_embed", _TUBELETS),
    *norm(f"{_LAYER}.layernorm_before", "blocks/norm1"),
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
    *norm(f"{_LAYER}.layernorm_after", "blocks/norm2"),
    *linears(_LAYER, "blocks/mlp", {"intermediate.dense": "fc1", "output.dense": "fc2"}),
    *norm("layernorm", "norm"),
    *norm("fc_norm", "pool_norm"),
]
_POOL_NORM = re.compile(r"(.*\.)?(fc_norm\.(?:weight|bias))")


def _adapt_vjepa2(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    tower = select_tower(tensors, "encoder.embeddings.patch_embeddings.proj.weight")
    return {name: x for name, x in tower.items() if not name.startswith("predictor.")}


def _adapt_videomae(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    adapted = {}
    for name, tensor in select_tower(
        tensors, "embeddings.patch_embeddings.projection.weight"
    ).items():
        # Files contain these names; the modules of transformers 5 have the new ones.
        name = name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias")
        adapted[name] = tensor
        if name.endswith(".attention.key.weight"):  # keys have no bias
            adapted[name.removesuffix("weight") + "bias"] = _zeros(tensor.shape[:1])
    for name, tensor in tensors.items():
        if match := _POOL_NORM.fullmatch(name):
            adapted[match[2]] = tensor
    return adapted


def _zeros(shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, lambda: np.zeros(shape, np.float32))


# Defaults in transformers for fields that are not in config.json.
_DEFAULTS = {
    "vjepa2": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "crop_size": 256,
        "frames_per_clip": 64,
        "tubelet_size": 2,
        "layer_norm_eps": 1e-6,
        "mlp_ratio": 4.0,
    },
    "videomae": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 224,
        "num_frames": 16,
        "tubelet_size": 2,
        "layer_norm_eps": 1e-12,
        "use_mean_pooling": True,
    },
}


def _sizes_vjepa2(config: Mapping[str, Any]) -> dict[str, Any]:
    require_model_type(config, "vjepa2", ("vjepa2",))
    require_values(config, {"hidden_act": "gelu", "qkv_bias": True, "in_chans": 3})
    config = {**_DEFAULTS["vjepa2"], **config}
    check_size(config["hidden_size"], "hidden_size", "config.json", LIMITS["width"])
    ratio = config["mlp_ratio"]
    config["intermediate_size"] = find_mlp_width(config["hidden_size"], ratio, "config.json")
    return _fields("vjepa2", config, "crop_size", "frames_per_clip", final_norm=True)


def _sizes_videomae(config: Mapping[str, Any]) -> dict[str, Any]:
    require_model_type(config, "videomae", ("videomae",))
    biases = {"qkv_bias": True, "qv_bias": True}  # names in transformers 4 and 5
    require_values(config, {"hidden_act": "gelu", "num_channels": 3, **biases})
    config = {**_DEFAULTS["videomae"], **config}
    final_norm = not config["use_mean_pooling"]
    return _fields("videomae", config, "image_size", "num_frames", final_norm=final_norm)


def _fields(
    kind: str, config: Mapping[str, Any], size: str, frames: str, *, final_norm: bool
) -> dict[str, Any]:
    """Returns the sizes for `models.tubelet_encoder.from_sizes`, without `pool_norm`.

    Args:
      kind: the kind of encoder.
      config: contents of config.json with defaults.
      size: name of the field with the size of the frames.
      frames: name of the field with the number of frames.
      final_norm: whether the tokens are normalized at the end.

    Raises:
      UserError: a value is invalid.
    """
    eps = config["layer_norm_eps"]
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise UserError(
            f"config.json has layer_norm_eps={eps!r}, which is not between 0 and 1: use "
            "the config.json of the checkpoint"
        )
    fields = {
        "kind": kind,
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_width": config["intermediate_size"],
        "patch": square_side(config, "patch_size"),
        "tubelet": config["tubelet_size"],
        "train_size": square_side(config, size),
        "frames": config[frames],
        "eps": eps,
        "final_norm": final_norm,
    }
    check_sizes(fields, "config.json")
    for name, part in (("train_size", "patch"), ("frames", "tubelet"), ("width", "heads")):
        if not fields[part] or not fields[name] or fields[name] % fields[part]:
            raise UserError(
                f"config.json describes a model whose {name}={fields[name]} is not a multiple of "
                f"its {part}={fields[part]}: use the config.json of the checkpoint"
            )
    return fields


FAMILIES = {
    "vjepa2": ModelFamily(VJEPA2, _sizes_vjepa2, _adapt_vjepa2),
    "videomae": ModelFamily(VIDEOMAE, _sizes_videomae, _adapt_videomae),
}
