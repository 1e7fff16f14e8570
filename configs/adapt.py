"""Continued pretraining on your own videos (docs/adapt.md).

    python launch/main.py --config=configs/adapt.py --config.init_from=encoder.safetensors \
        --config.data.manifest=data/mine.csv --workdir=runs/adapted

According to launch/plan.py, Stage 2 of Base and Large fits on a GPU with 24 GB of memory. Stage 2
of 1B, and Stage 1 of Base with the giant teacher, fit on one with 48 GB.
"""

import ml_collections

from configs import stage1, stage2

STAGES = {"stage1": stage1, "stage2": stage2}


def get_config(stage: str = "stage2") -> ml_collections.ConfigDict:
    """Returns the config of a stage, "stage1" or "stage2".

    Raises:
      ValueError: there is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}")
    config = STAGES[stage].get_config("base")
    config.init_sizes = True
    config.update(batch_size=32, accumulate=4, remat="full", epochs=20.0)
    # The rates of Stage 2, which also starts from a trained encoder, in both stages.
    config.optimizer.update(base_learning_rate=1e-4, base_min_learning_rate=1e-5, warmup_epochs=1.0)
    config.data.frames = 16
    config.data.held_out = 64  # evaluated before the first step, every 500 steps and at the end
    config.eval.every_steps = 500
    config.log.update(every_steps=10, diagnostics_every_steps=100, max_nonfinite_steps=5)
    config.checkpoint.every_steps = 500
    return config
