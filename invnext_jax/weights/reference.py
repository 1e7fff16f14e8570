"""Names and layouts of the published PyTorch models, mapped to our parameter trees.

A table of rules; the first whose pattern matches a name decides. The group `i` is the index of a
layer (or head) whose parameters we keep stacked along a new first axis.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np


def _keep(x):
    return x


def _linear(x):  # [out in] -> [in out]
    return x.T


def _split3(x):  # [3*out in] -> [in 3 out]
    return x.T.reshape(x.shape[1], 3, -1)


def _split2(x):
    return x.T.reshape(x.shape[1], 2, -1)


def _conv(x):  # [out c t r q] or [out c r q] -> [(r q c) out]
    x = x.reshape(*x.shape[:2], *x.shape[-2:])
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _squeeze(x):
    return x[0]


def _vector(x):
    return x.reshape(-1)


def _linear_rules(pattern: str, path: str) -> list:
    return [
        (rf"{pattern}\.weight", f"{path}/kernel", _linear),
        (rf"{pattern}\.bias", f"{path}/bias", _keep),
    ]


def _norm_rules(pattern: str, path: str) -> list:
    return [
        (rf"{pattern}\.weight", f"{path}/scale", _keep),
        (rf"{pattern}\.bias", f"{path}/bias", _keep),
    ]


def _head_rules(pattern: str, path: str) -> list:
    return [
        *_linear_rules(rf"{pattern}\.head\.0", f"{path}/fc1"),
        *_linear_rules(rf"{pattern}\.head\.2", f"{path}/fc2"),
        *_norm_rules(rf"{pattern}\.norm", f"{path}/norm"),
    ]


_BLOCK = r"blocks\.(?P<i>\d+)"
_ENCODER = [
    (r"cls_token", "encoder/class_token", _squeeze),
    (r"pos_embed", "encoder/position/table", _squeeze),
    (r"patch_embed\.proj\.weight", "encoder/patch_embed/proj/kernel", _conv),
    (r"patch_embed\.proj\.bias", "encoder/patch_embed/proj/bias", _keep),
    *_norm_rules(r"patch_embed\.norm", "encoder/patch_embed/norm"),
    *_norm_rules(r"patch_embed\.norm_before", "encoder/patch_embed/norm_before"),
    *_norm_rules(rf"{_BLOCK}\.norm1", "encoder/blocks/norm1"),
    *_norm_rules(rf"{_BLOCK}\.norm2", "encoder/blocks/norm2"),
    *_norm_rules(rf"{_BLOCK}\.attn\.q_norm", "encoder/blocks/attn/q_norm"),
    *_norm_rules(rf"{_BLOCK}\.attn\.k_norm", "encoder/blocks/attn/k_norm"),
    (rf"{_BLOCK}\.attn\.qkv\.weight", "encoder/blocks/attn/qkv/kernel", _split3),
    *_linear_rules(rf"{_BLOCK}\.attn\.proj", "encoder/blocks/attn/proj"),
    *_linear_rules(rf"{_BLOCK}\.mlp\.fc1", "encoder/blocks/mlp/fc1"),
    *_linear_rules(rf"{_BLOCK}\.mlp\.fc2", "encoder/blocks/mlp/fc2"),
    (rf"{_BLOCK}\.ls1\.(gamma|lr_scale)", "encoder/blocks/scale1", _keep),
    (rf"{_BLOCK}\.ls2\.(gamma|lr_scale)", "encoder/blocks/scale2", _keep),
]
_POOL = [
    rule
    for part in "qkv"
    for rule in (
        *_norm_rules(rf"clip_projector\.norm1_{part}", f"pool/norm_{part}"),
        (rf"clip_projector\.cross_attn\.{part}\.weight", f"pool/{part}/kernel", _linear),
        (rf"clip_projector\.cross_attn\.{part}_bias", f"pool/{part}/bias", _keep),
    )
] + _linear_rules(r"clip_projector\.cross_attn\.proj", "pool/proj")
_BERT = r"bert_decoder\.layers\.(?P<name>\d+)"
_PREDICTOR = [
    (r"bert_mask_token", "predictor/mask_token", _vector),
    (r"diff_pos_embed", "predictor/position/table", _squeeze),
    *_head_rules(r"to_bert_proj", "predictor/project"),
    *_norm_rules(rf"{_BERT}\.attn_norm", "predictor/layer{name}/attn_norm"),
    *_norm_rules(rf"{_BERT}\.mlp_norm", "predictor/layer{name}/mlp_norm"),
    (rf"{_BERT}\.attn\.Wqkv\.weight", "predictor/layer{name}/qkv/kernel", _split3),
    (rf"{_BERT}\.attn\.Wo\.weight", "predictor/layer{name}/proj/kernel", _linear),
    (rf"{_BERT}\.mlp\.Wi\.weight", "predictor/layer{name}/fc1/kernel", _split2),
    (rf"{_BERT}\.mlp\.Wo\.weight", "predictor/layer{name}/fc2/kernel", _linear),
]
_NET = r"(?:diffloss\.)?net"
_RES = rf"{_NET}\.res_blocks\.(?P<name>\d+)"
_DECODER = [
    *_linear_rules(rf"{_NET}\.time_embed\.mlp\.0", "decoder/time1"),
    *_linear_rules(rf"{_NET}\.time_embed\.mlp\.2", "decoder/time2"),
    *_linear_rules(rf"{_NET}\.cond_embed", "decoder/latent"),
    *_linear_rules(rf"{_NET}\.input_proj", "decoder/input"),
    *_norm_rules(rf"{_RES}\.in_ln", "decoder/block{name}/norm"),
    *_linear_rules(rf"{_RES}\.mlp\.0", "decoder/block{name}/fc1"),
    *_linear_rules(rf"{_RES}\.mlp\.2", "decoder/block{name}/fc2"),
    *_linear_rules(rf"{_RES}\.adaLN_modulation\.1", "decoder/block{name}/adapt"),
    *_linear_rules(rf"{_NET}\.final_layer\.adaLN_modulation\.1", "decoder/adapt"),
    *_linear_rules(rf"{_NET}\.final_layer\.linear", "decoder/output"),
]
_HEADS = [
    (r"clip_pos_embed", "align/position/table", _squeeze),
    *_head_rules(r"clip_decoder\.(?P<i>\d+)", "align/heads"),
    *_head_rules(r"final_clip_decoder", "align_pooled"),
    *_head_rules(r"selfdist_decoder", "head"),
]
PRETRAINING = _ENCODER + _POOL + _PREDICTOR + _DECODER + _HEADS

_LAYER = r"encoder\.layers\.(?P<i>\d+)"
SIGLIP2 = [
    (r"embeddings\.patch_embedding\.weight", "patch_embed/kernel", _conv),
    (r"embeddings\.patch_embedding\.bias", "patch_embed/bias", _keep),
    (r"embeddings\.position_embedding\.weight", "position", _keep),
    *[
        rule
        for part, name in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "proj"))
        for rule in _linear_rules(rf"{_LAYER}\.self_attn\.{part}", f"blocks/attn/{name}")
    ],
    *_norm_rules(rf"{_LAYER}\.layer_norm1", "blocks/norm1"),
    *_norm_rules(rf"{_LAYER}\.layer_norm2", "blocks/norm2"),
    *_linear_rules(rf"{_LAYER}\.mlp\.fc1", "blocks/mlp/fc1"),
    *_linear_rules(rf"{_LAYER}\.mlp\.fc2", "blocks/mlp/fc2"),
    *_norm_rules(r"post_layernorm", "norm"),
    (r"head\.probe", "head/probe", _squeeze),
    # `to_tree` has split the fused projection of the pooling head by then.
    *[
        rule
        for part in "qkv"
        for rule in _linear_rules(rf"head\.attention\.{part}", f"head/attn/{part}")
    ],
    *_linear_rules(r"head\.attention\.out_proj", "head/attn/proj"),
    *_norm_rules(r"head\.layernorm", "head/norm"),
    *_linear_rules(r"head\.mlp\.fc1", "head/mlp/fc1"),
    *_linear_rules(r"head\.mlp\.fc2", "head/mlp/fc2"),
]


def to_tree(state: Mapping[str, np.ndarray], rules: list) -> dict[str, Any]:
    """Maps reference tensors to our tree; works on gradients as well as on parameters.

    Args:
      state: tensors by reference name; layers that are stacked must start at number 0.
      rules: `PRETRAINING` or `SIGLIP2`.

    Returns:
      Nested dicts of contiguous arrays.

    Raises:
      KeyError: no rule knows a name.
    """
    flat, stacks = {}, {}
    for name, value in _split_fused(state).items():
        path, index, value = _apply(name, value, rules)
        if index is None:
            flat[path] = np.ascontiguousarray(value)
        else:
            stacks.setdefault(path, {})[index] = value
    for path, layers in stacks.items():
        flat[path] = np.stack([layers[i] for i in range(len(layers))])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _apply(name: str, value: np.ndarray, rules: list) -> tuple[str, int | None, np.ndarray]:
    for pattern, path, transform in rules:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            index = int(groups["i"]) if "i" in groups else None
            return path.format(**groups), index, transform(value)
    raise KeyError(f"no rule for the parameter {name}")


def _split_fused(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the pooling head's fused projection into q, k and v."""
    split = {}
    for name, value in state.items():
        if match := re.fullmatch(r"(head\.attention)\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", np.split(value, 3), strict=True):
                split[f"{match[1]}.{part}.{match[2]}"] = piece
        else:
            split[name] = value
    return split
