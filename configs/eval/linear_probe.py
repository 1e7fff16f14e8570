"""Linear probes of a frozen encoder, with baselines to compare them with.

    python launch/probe.py --config=configs/eval/linear_probe.py:tiny --workdir=runs/probe \
        --config.checkpoint=runs/stage2

The sizes of the encoder come from its checkpoint; the variant sets only the options of the
evaluation. The config of another evaluation starts from this one and sets `evaluators`.
"""

import ml_collections

from configs import common


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Variants: tiny (the embedded world, with baselines), base (large and 1b are the same)."""
    config = ml_collections.ConfigDict()
    config.checkpoint = ""  # workdir of a pretraining run, or an exported .safetensors
    config.ema = False  # whether to evaluate a run's moving average instead of its parameters
    # Names from invnext_jax/evaluation/evaluators/registry.py, in the order in which they run. All
    # but the first are baselines, which run only with `controls`.
    config.evaluators = ("linear_probe", "pixel_baselines", "box_baselines", "supervised")
    config.train_manifest = ""  # CSV with label_<task> columns; the probes are fitted on it
    config.val_manifest = ""  # CSV of the held-out videos, on which all results are measured
    config.tasks = ()  # label columns without "label_"; (): all columns of the training manifest
    config.poolings = ("mean", "frames")  # mean of all grid tokens; means per frame, concatenated
    config.seed = 0  # of the split that chooses the penalty, random initialisation, forests
    config.batch_size = 64  # clips per forward pass
    # Values of C of the logistic regression, chosen on `held_out` of the training videos.
    config.inverse_penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    config.held_out = 0.2
    # Also evaluates the same encoder with random initialisation, and runs the baselines: first
    # frame, bag of frames, ground-truth boxes, supervised training. They load all videos into
    # memory. Of several evaluations on the same data, one needs them.
    config.controls = False
    config.trees = 200  # of the random forests on ground-truth boxes
    config.supervised = ml_collections.ConfigDict(
        {
            "steps": 0,  # end-to-end training of the same encoder with labels; 0: not run
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
