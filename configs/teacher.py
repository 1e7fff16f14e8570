"""The image teacher of the synthetic world, a small SigLIP2 trained on frames and captions.

python launch/train_teacher.py --config=configs/teacher.py:tiny --workdir=runs/teacher
"""

import ml_collections

from configs import stage1

VARIANTS = ("tiny", "full")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Returns the config of a variant.

    Args:
      variant: "tiny" (level "simple"; the package includes its image tower) or "full" (level
          "full", for a GPU).

    Raises:
      ValueError: `variant` is not one of `VARIANTS`.
    """
    variant = variant or "tiny"
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config = ml_collections.ConfigDict()
    config.variant = variant
    config.seed = 0
    config.total_steps = 1500
    config.batch_size = 64  # image-caption pairs per step
    config.dtype = "float32"
    config.data = ml_collections.ConfigDict(
        {
            "level": "simple",  # level of the synthetic world
            # Factor on the size of the main object, and number of distractors (None: that of the
            # level).
            "object_size": 1.0,
            "clutter": ml_collections.config_dict.placeholder(int),
            "frames": 8,  # frames per clip; each is one training image
            "clips": 4000,
            "val_clips": 500,  # held-out clips for the final measurement
        }
    )
    config.teacher = stage1.get_config("tiny").teacher  # the image tower
    config.teacher.weights = ""
    config.text = ml_collections.ConfigDict(
        {
            "width": 64,
            "depth": 2,
            "heads": 4,
            "mlp_width": 128,
            "length": 8,
        }  # length of a caption in words
    )
    # SigLIP's initial values are 10 and -10, for a batch of 32768 with one match per row. Here an
    # image matches about one caption in eight.
    config.loss = ml_collections.ConfigDict({"scale": 10.0, "bias": -2.0})
    config.optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": 1e-3,
            "min_learning_rate": 1e-5,
            "warmup_steps": 200,
            "betas": (0.9, 0.98),
            "eps": 1e-6,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "frozen": (),  # top-level parameter groups that are not trained
        }
    )
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1})
    config.log = ml_collections.ConfigDict(
        {"every_steps": 50, "max_nonfinite_steps": 20, "collapse_ratio": 0.0, "tracker": ""}
    )
    if variant == "full":
        config.total_steps = 15_000
        config.batch_size = 512
        config.data.update(level="full", clips=40_000, val_clips=2000)
        config.teacher.update(width=192, depth=6, heads=6, mlp_width=768, size=64, train_size=64)
    return config
