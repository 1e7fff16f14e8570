"""The parameter names of published image models, as Hugging Face folders hold them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from invnext_jax.weights.layout import CONV2D, SQUEEZE, Rule, linear, norm, to_tree

_LAYER = "encoder.layers.{i}"
SIGLIP2 = [
    *linear("embeddings.patch_embedding", "patch_embed", CONV2D),
    Rule("embeddings.position_embedding.weight", "position"),
    *[
        rule
        for part, name in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "proj"))
        for rule in linear(f"{_LAYER}.self_attn.{part}", f"blocks/attn/{name}")
    ],
    *norm(f"{_LAYER}.layer_norm1", "blocks/norm1"),
    *norm(f"{_LAYER}.layer_norm2", "blocks/norm2"),
    *linear(f"{_LAYER}.mlp.fc1", "blocks/mlp/fc1"),
    *linear(f"{_LAYER}.mlp.fc2", "blocks/mlp/fc2"),
    *norm("post_layernorm", "norm"),
    Rule("head.probe", "head/probe", SQUEEZE),
    # `siglip2_tree` has split the fused projection of the pooling head by then.
    *[rule for part in "qkv" for rule in linear(f"head.attention.{part}", f"head/attn/{part}")],
    *linear("head.attention.out_proj", "head/attn/proj"),
    *norm("head.layernorm", "head/norm"),
    *linear("head.mlp.fc1", "head/mlp/fc1"),
    *linear("head.mlp.fc2", "head/mlp/fc2"),
]


def siglip2_tree(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our tree of a SigLIP vision tower, whose names have no prefix.

    Raises:
      KeyError: a name that the tower does not have.
    """
    split = {}
    for name in state:
        if match := re.fullmatch(r"(head\.attention)\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", np.split(state[name], 3), strict=True):
                split[f"{match[1]}.{part}.{match[2]}"] = piece
        else:
            split[name] = state[name]
    return to_tree(split, SIGLIP2)
