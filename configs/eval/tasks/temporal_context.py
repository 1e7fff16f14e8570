"""How much other frames help to predict masked patches of a data set.

    python launch/evaluate.py --config=configs/eval/tasks/temporal_context.py:tiny \
        --checkpoint=runs/s1 --workdir=runs/e1

Two predictors with the sizes of the checkpoint's config are trained. One gets the visible patches
of all frames, the other only those of the frame that it predicts. The gain is the difference
between their losses.
"""

import ml_collections

from configs import common
from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base."""
    config = linear_probe.get_config(variant)
    config.update(evaluators=("temporal_context",), controls=False)
    mask = common.defaults().mask
    config.temporal_context = ml_collections.ConfigDict(
        {
            # Targets: "latents" (tokens of the encoder for the whole clip, as unit vectors) and
            # "pixels" (normalized pixels).
            "targets": ("latents", "pixels"),
            # Multi-block masks; see `mask` in configs/common.py.
            "mask": {name: mask[name] for name in ("blocks", "visible", "aspect", "fit")},
            "learning_rate": 1e-3,  # Peak learning rate of AdamW.
            "weight_decay": 0.05,  # Decoupled weight decay.
            "batch_size": 32,  # Videos per step.
            "epochs": 10.0,  # Passes over the training videos.
            "warmup_epochs": 1.0,  # Epochs of linear warm-up, followed by a cosine decay to 0.
        }
    )
    return config
