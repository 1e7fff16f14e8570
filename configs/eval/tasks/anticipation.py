"""Action anticipation: a probe on the tokens of a context and on predicted latents of later frames.

    python launch/evaluate.py --config=configs/eval/tasks/anticipation.py:tiny \
        --checkpoint=runs/s2 --workdir=runs/e2

The base variant is for EPIC-KITCHENS-100; ek100_anticipation.py is based on it.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base (EPIC-KITCHENS-100)."""
    config = linear_probe.get_config(variant)
    config.evaluators = ("anticipation",)
    config.tasks = ("verb", "noun", "action")
    config.anticipation = ml_collections.ConfigDict(
        {
            # Manifests of this evaluator; below `data.root`. "": those of the config. If a manifest
            # does not exist, the evaluator is skipped.
            "train_manifest": "",
            "val_manifest": "",
            # Frames of a clip that the encoder sees; later ones are ignored. 0: all frames, for
            # clips that end before the action.
            "context_frames": 0,
            # Frames of the time grid. The first ones are the context, and the predictor predicts
            # later ones. If this differs from the training clips, the position tables are resized.
            # The paper does not state it. 0: number of frames of the training clips.
            "grid_frames": 0,
            # Frames of the grid between the context and the first predicted one: 1 second at 6
            # frames per second.
            "gap_frames": 6,
            "predicted_frames": 0,  # Number of predicted frames. 0: all later ones of the grid.
            # Whether all tokens have the same norm, as in the loss of Stage 2.
            "unit_tokens": True,
            "recall_at": (5,),  # Values of k for the class-mean recall@k.
            "heads": 16,  # Attention heads of the probe; must divide the width of the encoder.
            "blocks": 3,  # Self-attention blocks of the probe, before its cross-attention block.
            # Learning rates and weight decays of the grid. All pairs are trained in one run.
            "learning_rates": (1e-4, 3e-4, 1e-3, 3e-3, 5e-3),
            "weight_decays": (1e-4, 1e-3, 1e-2, 1e-1),
            "batch_size": 128,  # Videos per step.
            "epochs": 20.0,  # Passes over the training videos.
            "warmup_epochs": 0.0,  # Epochs of linear warm-up, followed by a cosine decay to 0.
            # Whether clips are sampled and augmented in each epoch, with the options below and in
            # `data`. Encoder and predictor then run in each step. False: they run once for each
            # video, and the tokens are stored (see `features.max_gb`).
            "augment": True,
            # Strength (0 to 10) and its standard deviation, number of operations for each clip (0:
            # none), and probability of each.
            "rand_augment": {
                "magnitude": 9.0,
                "deviation": 0.5,
                "operations": 2,
                "probability": 0.5,
            },
            # Fraction of the training videos that are held out to select the learning rate and
            # decay. The heads are not trained on them. A single head is trained on all videos.
            "held_out": 0.1,
        }
    )
    config.batch_size = 32
    config.data.update(frames=24, crop="random_resized", crop_area=(0.08, 1.0))
    config.train_manifest, config.val_manifest = "train.csv", "val.csv"
    if variant == "tiny":
        config.train_manifest = "world:anticipation/train?videos=2000"
        config.val_manifest = "world:anticipation/val?videos=500"
        config.controls = True
        config.data.frames = 0
        config.anticipation.update(
            context_frames=6,
            gap_frames=0,
            recall_at=(1, 5),
            heads=4,
            blocks=1,
            learning_rates=(1e-3, 3e-3),
            weight_decays=(1e-3, 1e-1),
            batch_size=64,
            warmup_epochs=1.0,
            augment=False,  # flips and rotations would change the labels
            held_out=0.2,
        )
    return config
