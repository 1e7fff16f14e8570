"""Parameter counts of the published sizes, from shapes alone."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import stage1 as config1
from configs import stage2 as config2
from invnext_jax import stage1, stage2

# Counted in the reference implementation (teacher width 1536, 6 taps, 16 frames, patch 14).
COUNTS = {
    "base": {
        "patch_embed": 453_708,
        "class_token": 3_072,
        "table": 3_148_800,
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
        "table": 4_198_400,
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


def shapes(stage, config):
    model = stage.make_model(config)
    init = jax.eval_shape(lambda key: stage.init_params(config, model, key), jax.random.key(0))
    return nn.unbox(init)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_counts_equal_the_reference(variant):
    one = shapes(stage1, config1.get_config(variant))
    two = shapes(stage2, config2.get_config(variant))
    encoder, predictor = one["encoder"], one["predictor"]
    found = {
        "patch_embed": encoder["patch_embed"],
        "class_token": encoder["class_token"],
        "table": encoder["position"],
        "blocks": encoder["blocks"],
        "pool": one["pool"],
        "align_heads": one["align"]["heads"],
        "align_pooled": one["align_pooled"],
        "mask_token": predictor["mask_token"],
        "project": predictor["project"],
        "layers": [predictor[f"layer{i}"] for i in range(5)],
        "decoder": one["decoder"],
        "head": two["head"],
    }
    assert {name: count(tree) for name, tree in found.items()} == COUNTS[variant]
    for table in (predictor["position"], one["align"]["position"]):
        assert count(table) == COUNTS[variant]["table"]
    assert jax.tree.map(lambda x: x.shape, two["encoder"]) == jax.tree.map(
        lambda x: x.shape, encoder
    )
