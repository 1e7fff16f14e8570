"""Attentive probes of a frozen encoder: cross-attention heads on all tokens.

    python launch/evaluate.py --config=configs/eval/tasks/attentive_probe.py:tiny \
        --checkpoint=runs/s2 --workdir=runs/e2

The base variant has the values of the paper for K400 (Table 15).
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base."""
    config = linear_probe.get_config(variant)
    config.evaluators = ("attentive_probe",)
    config.attentive_probe = ml_collections.ConfigDict(
        {
            # "mean_query": the head of the paper, whose query is the mean token. "learned_query":
            # the head of V-JEPA 2, learned queries after self-attention blocks.
            "head": "mean_query",
            "heads": 16,  # Attention heads; must divide the width of the encoder.
            "width": 768,  # For mean_query: width of the output of the attention.
            # For mean_query: whether an MLP with a residual connection follows the attention.
            "mlp": False,
            "blocks": 3,  # For learned_query: number of self-attention blocks.
            # Learning rates and weight decays of the grid. All pairs are trained in one run. The
            # paper has 1e-3 for SSv2, 3e-4 for K400 and 2e-4 for COIN, and states no weight decay.
            "learning_rates": (1e-4, 3e-4, 1e-3),
            "weight_decays": (0.0, 0.01),
            "batch_size": 1024,  # Videos per step.
            "epochs": 20.0,  # Passes over the training videos.
            "warmup_epochs": 5.0,  # Epochs of linear warm-up, followed by a cosine decay to 0.
            "label_smoothing": 0.1,  # Fraction of the target that is spread over all classes.
            # Whether clips are sampled and augmented in each epoch, with the options below and in
            # `data`. The encoder then runs in each step. False: it runs once for each video, and
            # its tokens are stored (see `features.max_gb`).
            "augment": True,
            "repeats": 2,  # Clips of each video in a batch.
            "cutmix": 1.0,  # Parameter of the beta distribution of CutMix. 0: none.
            # Strength (0 to 10) and its standard deviation, number of operations for each clip (0:
            # none), and probability of each.
            "rand_augment": {
                "magnitude": 9.0,
                "deviation": 0.5,
                "operations": 2,
                "probability": 0.5,
            },
            # Crops of each evaluated video, 1 or 3. Their class probabilities are averaged.
            "crops": 3,
            # Fraction of the training videos that are held out to select the learning rate and
            # decay. The heads are not trained on them. A single head is trained on all videos.
            "held_out": 0.1,
        }
    )
    config.data.crop = "random_resized"
    if variant == "tiny":
        config.attentive_probe.update(
            heads=4,
            width=64,
            learning_rates=(1e-3, 3e-3),
            batch_size=64,
            warmup_epochs=2.0,
            augment=False,  # flips and rotations would change the labels
            crops=1,
            held_out=0.2,
        )
    return config
