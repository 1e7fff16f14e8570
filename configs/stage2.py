"""Stage 2: latent prediction of a frozen Stage 1 target under multi-block masks (section 3.3).

python launch/main.py --config=configs/stage2.py:base --workdir=runs/stage2 \
    --config.init_from=runs/stage1
"""

import ml_collections

from configs import common


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Variants: tiny (the embedded world), base, large, 1b."""
    config = common.defaults()
    config.stage = "stage2"
    config.target = ml_collections.ConfigDict(
        {
            # "frozen": the Stage 1 encoder; "momentum": it follows the student; "image": the image
            # teacher's last layer.
            "kind": "frozen",
            "momentum": 0.9998,  # share of the momentum target that stays in a step
            "drop_path": False,  # whether the target drops branches, as in the released scripts
        }
    )
    # Weights; a term of weight 0 is not computed and its modules are not built.
    config.loss = ml_collections.ConfigDict(
        {
            "predict": 1.0,  # the target's tokens at the masked places
            "align_visible": 0.0,  # the target's tokens at the visible places
            "pixels": 0.0,  # of the masked patches, as in Stage 1
        }
    )
    config.mask.kind = "multi_block"
    config.data.frames = 32
    config.optimizer.frozen = ("pool",)  # no loss reaches it; it is carried from Stage 1
    config.batch_size = 1024 if variant in ("large", "1b") else 2048
    steps_per_epoch = common.VIDEOS // config.batch_size
    config.total_steps = 101 * steps_per_epoch
    scale = config.batch_size / 256
    config.optimizer.update(
        learning_rate=1e-4 * scale, min_learning_rate=1e-5 * scale, warmup_steps=0
    )
    common.apply_variant(config, variant)
    # What makes 32 clips or more fit one H200 (launch/plan.py).
    config.remat = {"tiny": "none", "large": "full", "1b": "full"}.get(variant, "dots")
    if variant == "tiny":
        config.total_steps = 500
        config.optimizer.update(learning_rate=1e-3, min_learning_rate=1e-5, warmup_steps=20)
    return config
