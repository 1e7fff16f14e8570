"""Stage 1: semantic-guided pixel reconstruction (paper section 3.2).

python launch/main.py --config=configs/stage1.py:base --workdir=runs/stage1
"""

import ml_collections

from configs import common, machines


def get_config(argument: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant.

    Args:
      argument: a variant, and optionally a machine and an image teacher after commas, as in
        "base,h200x8,siglip2_so400m". The variants are tiny (the synthetic world), base, large and
        1b; machines.py lists the machines. The teachers are siglip2_giant (the default),
        siglip2_so400m, siglip2_large, clip_large and dinov2_large.

    Raises:
      ValueError: a name is unknown.
    """
    variant, *presets = argument.split(",")
    config = common.defaults()
    config.stage = "stage1"
    # Weights of the losses. A loss with weight 0 is not computed, and its modules are not built.
    config.loss = ml_collections.ConfigDict(
        {
            # Alignment of the student's visible tokens with the teacher's tokens, in the last
            # `teacher.taps` layers of the student.
            "align_tokens": 1.0,
            "align_pooled": 1.0,  # Alignment of the pooled feature with the teacher's.
            "pixels": 1.0,  # Reconstruction of the pixels of the predicted patches.
        }
    )
    # 62 epochs, of which 7 are warm-up, as in the released scripts. The paper's text says 50 + 5.
    config.epochs = 62.0
    config.optimizer.update(base_learning_rate=1e-3, base_min_learning_rate=1e-5, warmup_epochs=7.0)
    common.apply_variant(config, variant)
    if variant in ("large", "1b"):
        config.remat = "dots"
    if variant == "tiny":
        config.total_steps = 800
        config.optimizer.update(learning_rate=2e-3, min_learning_rate=2e-5, warmup_steps=40)
    teachers = () if variant == "tiny" else tuple(n for n in common.TEACHERS if n != "tiny")
    if teachers:
        common.apply_teacher(config, "siglip2_giant")
    for name in presets:
        if name in teachers:
            common.apply_teacher(config, name)
        else:
            machines.apply_machine(config, name, teachers)
    return config
