"""The published ModernBERT: its last layers, from which a predictor starts."""

import re
from collections.abc import Mapping
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.weights.config_json import require, require_type
from invnext_jax.weights.files import Tensor
from invnext_jax.weights.layout import FUSED2, FUSED3, LINEAR, Rule

_THEIRS, _OURS = "layers.{n}", "text/layer{n}"  # the number in the whole model is kept
RULES = [
    Rule(f"{_THEIRS}.attn_norm.weight", f"{_OURS}/attn_norm/scale"),
    Rule(f"{_THEIRS}.attn.Wqkv.weight", f"{_OURS}/qkv/kernel", FUSED3),
    Rule(f"{_THEIRS}.attn.Wo.weight", f"{_OURS}/proj/kernel", LINEAR),
    Rule(f"{_THEIRS}.mlp_norm.weight", f"{_OURS}/mlp_norm/scale"),
    Rule(f"{_THEIRS}.mlp.Wi.weight", f"{_OURS}/fc1/kernel", FUSED2),
    Rule(f"{_THEIRS}.mlp.Wo.weight", f"{_OURS}/fc2/kernel", LINEAR),
]

GLOBAL, LOCAL = "full_attention", "sliding_attention"
# What transformers assumes where config.json is silent.
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "local_attention": 128,
}
_FIXED = {
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
    """What config.json says: fields of `config.predictor`, but `depth` is that of the whole model.

    Raises:
      UserError: another model, or one whose layers are not those of `models.predictor`.
    """
    require_type(config, "modernbert", ("modernbert",))
    require(config, _FIXED)
    sizes = {**_DEFAULTS, **config}
    depth = sizes["num_hidden_layers"]
    # Newer files name the kind of every layer, and the wavelengths by kind.
    types = [LOCAL if i % 3 else GLOBAL for i in range(depth)]
    if (config.get("layer_types") or types) != types:
        raise UserError("config.json has layer_types other than one full attention, two sliding")
    rope = config.get("rope_parameters") or {}
    for kind, theta in ((GLOBAL, 160_000), (LOCAL, 10_000)):
        require(rope.get(kind) or {}, {"rope_type": "default", "rope_theta": theta})
    return {
        "kind": "modernbert",
        "width": sizes["hidden_size"],
        "heads": sizes["num_attention_heads"],
        "mlp_width": sizes["intermediate_size"],
        "window": sizes["local_attention"],
        "last_layer": depth - 1,
        "depth": depth,
    }


def adapt(tensors: Mapping[str, Tensor], last_layers: int) -> dict[str, Tensor]:
    """The tensors of the last layers, without the model's prefix; nothing is read.

    Args:
      tensors: of a ModernBERT, with or without a head on top.
      last_layers: how many layers are kept; embeddings, final norm and heads are not.

    Raises:
      UserError: no ModernBERT, or `last_layers` is not from 1 to its depth less 1.
    """
    pattern = re.compile(r"(?:.*\.)?(layers\.(\d+)\..+)")
    found = {
        match[1]: (int(match[2]), name) for name in tensors if (match := pattern.fullmatch(name))
    }
    if not any(name.endswith(".attn.Wqkv.weight") for name in found):
        raise UserError("the file holds no layers.<number>.attn.Wqkv.weight: it is no ModernBERT")
    depth = 1 + max(number for number, _ in found.values())
    if not 1 <= last_layers < depth:
        raise UserError(
            f"last_layers={last_layers} must lie in 1 to {depth - 1}: the first of the {depth} "
            "layers has no norm before its attention, so that it cannot be part of a predictor"
        )
    return {
        short: tensors[name]
        for short, (number, name) in found.items()
        if number >= depth - last_layers
    }
