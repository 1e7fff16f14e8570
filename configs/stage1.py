"""Stage 1: semantic-guided pixel reconstruction (paper section 3.2).

python launch/main.py --config=configs/stage1.py:base --workdir=runs/stage1
"""

import ml_collections

from configs import common


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Variants: tiny (the embedded world), base, large, 1b."""
    config = common.defaults()
    config.stage = "stage1"
    # Weights; a term of weight 0 is not computed and its modules are not built.
    config.loss = ml_collections.ConfigDict(
        {
            "align_tokens": 1.0,  # visible tokens of the last layers with the teacher's
            "align_pooled": 1.0,  # pooled feature with the teacher's
            "pixels": 1.0,  # of the masked patches
        }
    )
    # The released scripts: 62 epochs, 7 of them warm-up. The paper's text: 50 + 5.
    steps_per_epoch = common.VIDEOS // config.batch_size
    config.total_steps = 62 * steps_per_epoch
    config.optimizer.update(
        learning_rate=8e-3, min_learning_rate=8e-5, warmup_steps=7 * steps_per_epoch
    )
    common.apply_variant(config, variant)
    if variant == "large":
        config.teacher.tap_interval = 1.67
    if variant in ("large", "1b"):
        config.remat = "dots"
    if variant == "tiny":
        config.total_steps = 800
        config.optimizer.update(learning_rate=2e-3, min_learning_rate=2e-5, warmup_steps=40)
    return config
