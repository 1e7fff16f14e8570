"""Parameter counts of the published sizes, from abstract shapes, and the table in the docs."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import common
from configs import stage1 as config1
from configs import stage2 as config2
from invnext_jax.stages.registry import STAGES

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

SIZES = Path(__file__).parents[2] / "docs" / "architecture.md"

# Counted in the reference implementation (teacher width 1536, 6 taps, 16 frames, patch 14).
COUNTS = {
    "base": {
        "patch_embed": 453_708,
        "class_token": 3_072,
        "position": 3_148_800,
        "blocks": 85_045_248,
        "pool": 2_366_976,
        "align_heads": 10_649_088,
        "align_pooled": 1_774_848,
        "mask_token": 768,
        "project": 1_380_096,
        "layers": 61_286_400,
        "decoder": 82_607_256,
        "head": 1_838_336,
    },
    "large": {
        "patch_embed": 604_748,
        "class_token": 4_096,
        "position": 4_198_400,
        "blocks": 302_284_800,
        "pool": 3_942_144,
        "align_heads": 15_762_432,
        "align_pooled": 1_774_848,
        "mask_token": 1_024,
        "project": 2_101_248,
        "layers": 61_286_400,
        "decoder": 82_607_256,
        "head": 2_101_248,
    },
}
LABELS = {
    "patch_embed": "encoder: patch embedding",
    "class_token": "encoder: 4 class tokens",
    "position": "encoder: position table, 16 frames",
    "blocks": "encoder: blocks",
    "pool": "attention pool",
    "mask_token": "predictor: mask token",
    "predictor_position": "predictor: position table",
    "project": "predictor: projection",
    "layers": "predictor: 5 ModernBERT-Large layers",
    "decoder": "diffusion decoder, 6 x 1536 (Stage 1)",
    "align_position": "alignment heads: position table (Stage 1)",
    "align_heads": "6 alignment heads (Stage 1)",
    "align_pooled": "pooled alignment head (Stage 1)",
    "head": "head into the target's space (Stage 2)",
}
VARIANTS = [variant for variant in common.VARIANTS if variant != "tiny"]


def shapes(stage, config):
    model = stage.make_model(config)
    init = jax.eval_shape(lambda key: stage.init_params(config, model, key), jax.random.key(0))
    return nn.unbox(init)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def counted(variant):
    one = shapes(stage1, config1.get_config(variant))
    two = shapes(stage2, config2.get_config(variant))
    encoder, predictor = one["encoder"], one["predictor"]
    assert jax.tree.map(lambda x: x.shape, two["encoder"]) == jax.tree.map(
        lambda x: x.shape, encoder
    )
    parts = {
        **{name: encoder[name] for name in ("patch_embed", "class_token", "position", "blocks")},
        "pool": one["pool"],
        "mask_token": predictor["mask_token"],
        "predictor_position": predictor["position"],
        "project": predictor["project"],
        "layers": [predictor[f"layer{i}"] for i in range(5)],
        "decoder": one["decoder"],
        "align_position": one["align"]["position"],
        "align_heads": one["align"]["heads"],
        "align_pooled": one["align_pooled"],
        "head": two["head"],
    }
    counts = {name: count(tree) for name, tree in parts.items()}
    assert count(one) == sum(counts.values()) - counts["head"]
    stage2_parts = ("patch_embed", "class_token", "position", "blocks", "pool", "head")
    stage2_parts += ("mask_token", "predictor_position", "project", "layers")
    assert count(two) == sum(counts[name] for name in stage2_parts)
    return counts


def closed_form(d, depth, f):
    """Computes parameter counts from width, number of layers and MLP width, as in the reference."""

    def head(x, out):  # two linear layers and a norm
        return x * x + x + x * out + out + 2 * out

    patch, tokens, pool, teacher, latent, gated = 3 * 14**2, 4 + 16 * 16**2, 768, 1536, 1024, 2624
    w, block = 1536, 3 * 1536**2 + 3 * 1536 + 2 * 1536 + 2 * (1536**2 + 1536)
    return {
        "patch_embed": patch * d + d + patch + d,
        "class_token": 4 * d,
        "position": tokens * d,
        # qkv, q/k norms, projection, MLP, two norms, two layer scales
        "blocks": depth * (3 * d * d + 2 * d + d * d + d + d * f + f + f * d + d + 4 * d),
        "pool": 3 * 2 * d + 3 * (d * d + d) + d * pool + pool,
        "mask_token": d,
        "predictor_position": tokens * d,
        "project": head(d, latent),
        "layers": 5 * (4 * latent**2 + 2 * latent + 3 * latent * gated),
        "decoder": (256 * w + w + w * w + w)
        + (latent * w + w + patch * w + w)
        + 6 * block
        + (2 * w * w + 2 * w + 2 * patch * w + 2 * patch),
        "align_position": tokens * d,
        "align_heads": 6 * head(d, teacher),
        "align_pooled": head(pool, teacher),
        "head": head(latent, d),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_equal_the_reference(variant):
    e = common.ENCODERS[variant]
    expected = closed_form(e["width"], e["depth"], e["mlp_width"])
    for name, value in COUNTS.get(variant, {}).items():
        assert expected[name] == value, name
    assert counted(variant) == expected


def table():
    counts = {variant: counted(variant) for variant in VARIANTS}
    rows = {label: [counts[v][name] for v in VARIANTS] for name, label in LABELS.items()}
    sums = {
        "**encoder** (what is published)": ("patch_embed", "class_token", "position", "blocks"),
        "**Stage 1, all**": [name for name in LABELS if name != "head"],
        "**Stage 2, all**": [n for n in LABELS if n != "decoder" and not n.startswith("align")],
    }
    for label, names in sums.items():
        rows[label] = [sum(counts[v][name] for name in names) for v in VARIANTS]
    lines = [f"| part | {' | '.join(VARIANTS)} |", "|---|" + "---|" * len(VARIANTS)]
    lines += [f"| {label} | {' | '.join(f'{n:,}' for n in row)} |" for label, row in rows.items()]
    return "\n".join(lines)


def test_documented_table_equals_counted_parameters():
    assert table() in SIZES.read_text(), f"docs/architecture.md must hold:\n{table()}"
