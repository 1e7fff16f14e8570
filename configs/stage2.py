"""Stage 2: prediction of a frozen Stage 1 encoder's latents (paper section 3.3).

python launch/main.py --config=configs/stage2.py:base --workdir=runs/stage2 \
    --config.init_from=runs/stage1
"""

import ml_collections

from configs import common, machines


def get_config(argument: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant.

    Args:
      argument: "<variant>" or "<variant>,<machine>". The variants are tiny (the synthetic world),
        base, large and 1b; the machines are listed in machines.py.
    """
    variant, _, machine = argument.partition(",")
    config = common.defaults()
    config.stage = "stage2"
    # The target network. It encodes the whole clip, and the student predicts its tokens.
    config.target = ml_collections.ConfigDict(
        {
            # "frozen": the Stage 1 encoder; "momentum": a moving average of the student's encoder;
            # "image": the input of the image teacher's last tapped layer.
            "kind": "frozen",
            # For kind "momentum": decay of the moving average per step.
            "momentum": 0.9998,
            # Whether to apply drop path in the target network. The released scripts apply it.
            "drop_path": False,
        }
    )
    # Weights of the losses. A loss with weight 0 is not computed, and its modules are not built.
    config.loss = ml_collections.ConfigDict(
        {
            "predict": 1.0,  # Prediction of the target's tokens at the masked positions.
            # Alignment of the student's visible tokens with the target's.
            "align_visible": 0.0,
            "pixels": 0.0,  # Reconstruction of the pixels of the predicted patches.
        }
    )
    config.mask.kind = "multi_block"
    config.data.frames = 32
    config.optimizer.frozen = ("pool",)  # trained in Stage 1; no loss of Stage 2 depends on it
    config.batch_size = 1024 if variant in ("large", "1b") else 2048
    config.epochs = 101.0  # as in the released scripts; the paper's text says 100
    config.optimizer.update(base_learning_rate=1e-4, base_min_learning_rate=1e-5, warmup_epochs=0.0)
    common.apply_variant(config, variant)
    # According to launch/plan.py, at least 32 clips per GPU then fit in the memory of an H200.
    config.remat = {"tiny": "none", "large": "full", "1b": "full"}.get(variant, "dots")
    if variant == "tiny":
        config.total_steps = 500
        config.optimizer.update(learning_rate=1e-3, min_learning_rate=1e-5, warmup_steps=20)
    machines.apply_machine(config, machine)
    return config
