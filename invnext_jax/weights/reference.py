"""Conversion rules for the parameters of the released InternVideo-Next code and encoders.

`PRETRAINING` has the names that are used in both pretraining stages. `PUBLISHED` has the names in
the released Stage 2 encoders. These start with `model.`, and layer scale is named `lr_scale`.
"""

from invnext_jax.weights.layout import (
    CONV3D,
    FUSED2,
    FUSED3,
    LINEAR,
    SQUEEZE,
    VECTOR,
    Rule,
    linear,
    norm,
)


def _head(name: str, path: str) -> list[Rule]:
    return [
        *linear(f"{name}.head.0", f"{path}/fc1"),
        *linear(f"{name}.head.2", f"{path}/fc2"),
        *norm(f"{name}.norm", f"{path}/norm"),
    ]


ENCODER = [
    Rule("cls_token", "encoder/class_token", SQUEEZE),
    Rule("pos_embed", "encoder/position/table", SQUEEZE),
    *linear("patch_embed.proj", "encoder/patch_embed/proj", CONV3D),
    *norm("patch_embed.norm", "encoder/patch_embed/norm"),
    *norm("patch_embed.norm_before", "encoder/patch_embed/norm_before"),
    *norm("blocks.{i}.norm1", "encoder/blocks/norm1"),
    *norm("blocks.{i}.norm2", "encoder/blocks/norm2"),
    *norm("blocks.{i}.attn.q_norm", "encoder/blocks/attn/q_norm"),
    *norm("blocks.{i}.attn.k_norm", "encoder/blocks/attn/k_norm"),
    Rule("blocks.{i}.attn.qkv.weight", "encoder/blocks/attn/qkv/kernel", FUSED3),
    *linear("blocks.{i}.attn.proj", "encoder/blocks/attn/proj"),
    *linear("blocks.{i}.mlp.fc1", "encoder/blocks/mlp/fc1"),
    *linear("blocks.{i}.mlp.fc2", "encoder/blocks/mlp/fc2"),
    Rule("blocks.{i}.ls1.gamma", "encoder/blocks/scale1"),
    Rule("blocks.{i}.ls2.gamma", "encoder/blocks/scale2"),
]
POOL = [
    *[
        rule
        for part in "qkv"
        for rule in (
            *norm(f"clip_projector.norm1_{part}", f"pool/norm_{part}"),
            Rule(f"clip_projector.cross_attn.{part}.weight", f"pool/{part}/kernel", LINEAR),
            Rule(f"clip_projector.cross_attn.{part}_bias", f"pool/{part}/bias"),
        )
    ],
    *linear("clip_projector.cross_attn.proj", "pool/proj"),
]
_BERT, _LAYER = "bert_decoder.layers.{n}", "predictor/layer{n}"
PREDICTOR = [
    Rule("bert_mask_token", "predictor/mask_token", VECTOR),
    Rule("diff_pos_embed", "predictor/position/table", SQUEEZE),
    *_head("to_bert_proj", "predictor/project"),
    *norm(f"{_BERT}.attn_norm", f"{_LAYER}/attn_norm"),
    *norm(f"{_BERT}.mlp_norm", f"{_LAYER}/mlp_norm"),
    Rule(f"{_BERT}.attn.Wqkv.weight", f"{_LAYER}/qkv/kernel", FUSED3),
    Rule(f"{_BERT}.attn.Wo.weight", f"{_LAYER}/proj/kernel", LINEAR),
    Rule(f"{_BERT}.mlp.Wi.weight", f"{_LAYER}/fc1/kernel", FUSED2),
    Rule(f"{_BERT}.mlp.Wo.weight", f"{_LAYER}/fc2/kernel", LINEAR),
]


def _decoder(net: str) -> list[Rule]:
    block, path = f"{net}.res_blocks.{{n}}", "decoder/block{n}"
    return [
        *linear(f"{net}.time_embed.mlp.0", "decoder/time1"),
        *linear(f"{net}.time_embed.mlp.2", "decoder/time2"),
        *linear(f"{net}.cond_embed", "decoder/latent"),
        *linear(f"{net}.input_proj", "decoder/input"),
        *norm(f"{block}.in_ln", f"{path}/norm"),
        *linear(f"{block}.mlp.0", f"{path}/fc1"),
        *linear(f"{block}.mlp.2", f"{path}/fc2"),
        *linear(f"{block}.adaLN_modulation.1", f"{path}/adapt"),
        *linear(f"{net}.final_layer.adaLN_modulation.1", "decoder/adapt"),
        *linear(f"{net}.final_layer.linear", "decoder/output"),
    ]


HEADS = [
    Rule("clip_pos_embed", "align/position/table", SQUEEZE),
    *_head("clip_decoder.{i}", "align/heads"),
    *_head("final_clip_decoder", "align_pooled"),
    *_head("selfdist_decoder", "head"),
]
_ALL = [*ENCODER, *POOL, *PREDICTOR, *_decoder("diffloss.net"), *HEADS]
PRETRAINING = [*_ALL, *_decoder("net")]  # including the names of a separately stored decoder
PUBLISHED = [
    rule._replace(name="model." + rule.name.replace(".gamma", ".lr_scale")) for rule in _ALL
]
