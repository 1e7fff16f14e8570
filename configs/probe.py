"""Linear probes of a frozen encoder, with the controls that make their figures readable.

    python launch/probe.py --config=configs/probe.py:tiny --workdir=runs/probe \
        --config.checkpoint=runs/stage2

The encoder's own sizes come from its checkpoint; the variant only sets what the probe itself needs.
"""

import ml_collections

from configs import common


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Variants: tiny (the embedded world, all controls), base (large, 1b: the same)."""
    config = ml_collections.ConfigDict()
    config.checkpoint = ""  # workdir of a pretraining run, or an exported .safetensors
    config.ema = False  # whether a run's moving average is probed instead of its parameters
    config.train_manifest = ""  # CSV with label_<task> columns; the probes are fitted on it
    config.val_manifest = ""  # CSV; the figures are of these videos
    config.tasks = ()  # label columns without "label_"; none named: all of the training manifest
    config.poolings = ("mean", "frames")  # mean of all grid tokens; means per frame, concatenated
    config.seed = 0  # of the split that chooses the penalty, random initialisation, forests
    config.batch_size = 64  # clips a forward pass
    # C of the logistic regression, chosen on `held_out` of the training videos.
    config.inverse_penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    config.held_out = 0.2
    # Random initialisation, first frame, bag of frames, ground-truth boxes, supervised training.
    # They hold the videos in memory; one probe of several on the same data needs them.
    config.controls = False
    config.trees = 200  # of the random forests on ground-truth boxes
    config.supervised = ml_collections.ConfigDict(
        {
            "steps": 0,  # end-to-end training of the same encoder with labels; 0 leaves it out
            "batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 20,
            "weight_decay": 0.05,
        }
    )
    config.data = common.data()
    # 0: the size and frame count that the encoder was built for.
    config.data.update(size=0, frames=0, short_side=0)
    if variant not in ("", *common.VARIANTS):
        raise ValueError(f"unknown variant {variant!r}: choose one of {common.VARIANTS}")
    if variant == "tiny":
        config.train_manifest = "data/world/train.csv"
        config.val_manifest = "data/world/val.csv"
        config.controls = True
        config.supervised.steps = 60
        config.data.update(workers=1, prefetch=32)
    return config
