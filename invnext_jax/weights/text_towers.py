"""Text towers of SigLIP, SigLIP 2 and CLIP in the Hugging Face format."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from invnext_jax.errors import UserError
from invnext_jax.weights.files import LazyTensor, require_values
from invnext_jax.weights.image_models import ACTIVATIONS, CLIP_BLOCKS
from invnext_jax.weights.layout import LINEAR, Rule, linear, norm
from invnext_jax.weights.model_family import select_tower
from invnext_jax.weights.model_sizes import LIMITS, check_size

_EMBEDDINGS = [
    Rule("embeddings.token_embedding.weight", "embed/embedding"),
    Rule("embeddings.position_embedding.weight", "position"),
]
_PROJECTION = "text_projection.weight"
_OLD_CLIP_END = 2  # wrong id in old config.json files of CLIP, whose end token has the highest id


class _Family(NamedTuple):
    """The tensor names and config.json fields of the text towers of a family.

    Attributes:
      rules: map tensor names to paths in the parameter tree.
      types: values of `model_type` of the text tower alone, and of models with both towers.
      required: values of fields that the module assumes.
      defaults: values of fields that are not in config.json, as in transformers.
    """

    rules: list[Rule]
    types: tuple[tuple[str, ...], tuple[str, ...]]
    required: Mapping[str, Any]
    defaults: Mapping[str, Any]


_FAMILIES = (
    _Family(
        rules=[
            *_EMBEDDINGS,
            *CLIP_BLOCKS,
            *norm("final_layer_norm", "norm"),
            *linear("head", "proj"),
        ],
        types=(("siglip_text_model", "siglip2_text_model"), ("siglip", "siglip2")),
        required={"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        defaults={
            "vocab_size": 32_000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 64,
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    _Family(
        rules=[
            *_EMBEDDINGS,
            *CLIP_BLOCKS,
            *norm("final_layer_norm", "norm"),
            Rule(_PROJECTION, "proj/kernel", LINEAR),
        ],
        types=(("clip_text_model",), ("clip",)),
        required={"layer_norm_eps": 1e-5},
        defaults={
            "vocab_size": 49_408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "eos_token_id": 49_407,
            "projection_dim": 512,
        },
    ),
)


def sizes(config: Mapping[str, Any], source: str, values: int) -> dict[str, Any]:
    """Reads the fields of `models.text_tower.TextTower` from the contents of config.json.

    Args:
      config: contents of config.json.
      source: path of the model, for messages.
      values: number of values in the file of weights.

    Raises:
      UserError: the model has no text tower of these kinds, or a value is not supported.
    """
    family = _find_family(config, source)
    tower = {**family.defaults, **_tower_config(config, family)}
    require_values(tower, family.required)
    is_clip = family is _FAMILIES[1]
    if tower["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"config.json of {source} has hidden_act={tower['hidden_act']!r}, which is not one of "
            f"{', '.join(ACTIVATIONS)}: use a different checkpoint"
        )
    found = {
        "words": tower["vocab_size"],
        "length": tower["max_position_embeddings"],
        "width": tower["hidden_size"],
        "depth": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "mlp_width": tower["intermediate_size"],
        "out_width": tower["projection_dim" if is_clip else "projection_size"]
        if is_clip or "projection_size" in tower
        else tower["hidden_size"],
    }
    for name, value in found.items():
        check_size(value, name, source, LIMITS[name])
    if (needed := (found["words"] + found["length"]) * found["width"]) > values:
        raise UserError(
            f"config.json of {source} describes embeddings with {needed:,} values, but the file "
            f"has only {values:,} values: use the config.json of the checkpoint"
        )
    end_token = None
    if is_clip:
        end_token = tower["eos_token_id"]
        # -1 is `models.text_tower.HIGHEST_ID`.
        end_token = -1 if end_token == _OLD_CLIP_END else end_token
        check_size(max(end_token, 0), "eos_token_id", source, LIMITS["words"])
    return {
        **found,
        "eps": 1e-5 if is_clip else 1e-6,
        "activation": ACTIVATIONS[tower["hidden_act"]],
        "causal": is_clip,
        "end_token": end_token,
        "out_bias": not is_clip,
    }


def rules(config: Mapping[str, Any], source: str) -> list[Rule]:
    """Returns the rules that map tensor names to parameter paths.

    Raises:
      UserError: the model has no text tower of these kinds.
    """
    return _find_family(config, source).rules


def adapt(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Selects the tensors of the text tower, with the names in `rules`; reads no data."""
    tower = select_tower(tensors, "embeddings.token_embedding.weight")
    inside = ("embeddings.", "encoder.", "final_layer_norm.", "head.")
    tower = {name: tensor for name, tensor in tower.items() if name.startswith(inside)}
    # CLIP's projection is not inside its text model. The vision tower may have the same prefix as
    # the text tower, but its embeddings have other names.
    if _PROJECTION in tensors:
        tower[_PROJECTION] = tensors[_PROJECTION]
    return tower


def _find_family(config: Mapping[str, Any], source: str) -> _Family:
    kind = config.get("model_type")
    for family in _FAMILIES:
        if kind in (*family.types[0], *family.types[1]):
            return family
    raise UserError(
        f"config.json of {source} has model_type={kind!r}, which has no supported text tower: use "
        "a folder of SigLIP, SigLIP 2 or CLIP in the format of transformers"
    )


def _tower_config(config: Mapping[str, Any], family: _Family) -> dict[str, Any]:
    """Returns the config of the text tower, which may be a section of a config for both towers."""
    if config["model_type"] in family.types[0]:
        return dict(config)
    nested = config.get("text_config_dict")  # overrides text_config in transformers
    nested = config.get("text_config") or {} if nested is None else nested
    if "projection_dim" in config:
        nested = {**nested, "projection_dim": config["projection_dim"]}
    return dict(nested)
