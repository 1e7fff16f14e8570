"""Stage 1: semantic-guided pixel reconstruction (paper section 3.2).

python launch/main.py --config=configs/stage1.py:base --workdir=runs/stage1
"""

import ml_collections

from configs import common


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Variants: tiny (the embedded world), base, large, 1b."""
    config = common.defaults()
    config.stage = "stage1"
    # The frozen image teacher: SigLIP2 giant-opt, 256 px, patch 16.
    config.teacher = ml_collections.ConfigDict(
        {
            "kind": "siglip2",  # "siglip2" | "clip" | "dinov2"
            "weights": "",  # .safetensors file of the vision tower
            "width": 1536,
            "depth": 40,
            "heads": 16,
            "mlp_width": 6144,
            "activation": "gelu_tanh",  # of clip: "quick_gelu" | "gelu"; others have but one
            "registers": 0,  # of dinov2: 0 | 4
            "gated": False,  # of dinov2: SwiGLU, whose two halves are mlp_width wide each
            "patch": 16,
            "size": 256,  # of the images it sees
            "train_size": 256,  # of the images its position table was trained for
            "taps": 6,  # intermediate features that the student aligns with
            "tap_interval": 3.33,  # every so many layers, counted from the last
        }
    )
    config.decoder = ml_collections.ConfigDict(
        {
            "kind": "diffusion",  # "diffusion" | "linear" | "mlp"
            "depth": 6,
            "width": 1536,
            "noise_draws": 1,  # noised copies of each masked patch a step
            "dtype": "float32",
        }
    )
    config.loss = ml_collections.ConfigDict(
        {"align_tokens": 1.0, "align_pooled": 1.0, "pixels": 1.0}
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
    if variant == "tiny":
        config.teacher.update(
            weights="assets",  # the teacher that this package ships
            width=96,
            depth=4,
            heads=4,
            mlp_width=384,
            patch=8,
            size=32,
            train_size=32,
            taps=2,
            tap_interval=1.0,
        )
        config.decoder.update(depth=2, width=192)  # no narrower than a patch (8 * 8 * 3)
        config.total_steps = 800
        config.optimizer.update(learning_rate=2e-3, min_learning_rate=2e-5, warmup_steps=40)
    return config
