"""Import of the last layers of the published ModernBERT, which can initialize a predictor."""

import re
from collections.abc import Mapping
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyTensor, require_model_type, require_values
from invnext_jax.weights.layout import FUSED2, FUSED3, LINEAR, Rule
from invnext_jax.weights.model_sizes import LIMITS, check_size

_NAME, _PATH = "layers.{n}", "text/layer{n}"  # n: index in the full model
RULES = [
    Rule(f"{_NAME}.attn_norm.weight", f"{_PATH}/attn_norm/scale"),
    Rule(f"{_NAME}.attn.Wqkv.weight", f"{_PATH}/qkv/kernel", FUSED3),
    Rule(f"{_NAME}.attn.Wo.weight", f"{_PATH}/proj/kernel", LINEAR),
    Rule(f"{_NAME}.mlp_norm.weight", f"{_PATH}/mlp_norm/scale"),
    Rule(f"{_NAME}.mlp.Wi.weight", f"{_PATH}/fc1/kernel", FUSED2),
    Rule(f"{_NAME}.mlp.Wo.weight", f"{_PATH}/fc2/kernel", LINEAR),
]

GLOBAL, LOCAL = "full_attention", "sliding_attention"
# Defaults in transformers for fields that are not in config.json.
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "local_attention": 128,
}
_SUPPORTED = {
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000,
    "local_rope_theta": 10_000,
    "rope_scaling": None,
}


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the fields of `config.predictor` from config.json; `depth` is that of the full model.

    Raises:
      UserError: the model is not a ModernBERT, or its layers differ from `models.predictor`.
    """
    require_model_type(config, "modernbert", ("modernbert",))
    require_values(config, _SUPPORTED)
    sizes = {**_DEFAULTS, **config}
    depth = sizes["num_hidden_layers"]
    check_size(depth, "num_hidden_layers", "config.json", LIMITS["depth"])
    # Newer files list the type of every layer and the rotary base of each type.
    types = [LOCAL if i % 3 else GLOBAL for i in range(depth)]
    if (config.get("layer_types") or types) != types:
        raise UserError(
            "layer_types in config.json must repeat one full_attention and two "
            "sliding_attention: use a different checkpoint"
        )
    rope = config.get("rope_parameters") or {}
    for kind, theta in ((GLOBAL, 160_000), (LOCAL, 10_000)):
        require_values(rope.get(kind) or {}, {"rope_type": "default", "rope_theta": theta})
    return {
        "kind": "modernbert",
        "width": sizes["hidden_size"],
        "heads": sizes["num_attention_heads"],
        "mlp_width": sizes["intermediate_size"],
        "window": sizes["local_attention"],
        "last_layer": depth - 1,
        "depth": depth,
    }


def adapt(tensors: Mapping[str, LazyTensor], last_layers: int) -> dict[str, LazyTensor]:
    """Selects the tensors of the last layers and removes the prefix of their names.

    The data of the tensors is not read.

    Args:
      tensors: tensors of a ModernBERT, with or without a head.
      last_layers: number of layers to keep; embeddings, final norm and heads are dropped.

    Raises:
      UserError: the tensors do not belong to a ModernBERT, or `last_layers` is out of range.
    """
    pattern = re.compile(r"(?:.*\.)?(layers\.([0-9]{1,6})\..+)")
    found = {
        match[1]: (int(match[2]), name) for name in tensors if (match := pattern.fullmatch(name))
    }
    if not any(name.endswith(".attn.Wqkv.weight") for name in found):
        raise UserError(
            "the file has no layers.<number>.attn.Wqkv.weight, so it is not a ModernBERT: use one"
        )
    depth = 1 + max(number for number, _ in found.values())
    if not 1 <= last_layers < depth:
        raise UserError(
            f"last_layers={last_layers} must be between 1 and {depth - 1}: the first layer of the "
            "model has no norm before its attention, so a predictor cannot use it"
        )
    return {
        short: tensors[name]
        for short, (number, name) in found.items()
        if number >= depth - last_layers
    }
