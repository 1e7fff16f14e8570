"""All evaluations of the synthetic world, each with its baselines.

    python launch/evaluate.py --config=configs/eval/world.py --checkpoint=runs/s2 --workdir=runs/e2

The encoder and the same encoder with random initialization are evaluated in the same way. The other
baselines use less or different information: the first frame, the frames without their order,
constant predictions, ground-truth boxes, and labels for supervised training. With a small encoder,
this takes less than ten minutes on two CPU cores.

Anticipation needs clips of the world level "anticipation", which launch/make_world.py writes with
--anticipation_videos. Without them, it is skipped.
"""

import ml_collections

from configs.eval.tasks import (
    anticipation,
    attentive_probe,
    depth,
    label_propagation,
    tracking,
    zero_shot,
)


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = attentive_probe.get_config("tiny")
    config.data.root = "data/world"
    config.update(train_manifest="train.csv", val_manifest="val.csv")
    config.evaluators = (
        "linear_probe",
        "knn",
        "few_shot",
        "attentive_probe",
        "text_alignment",
        "anticipation",
        "depth",
        "tracking",
        "label_propagation",
        "pixel_baselines",
        "box_baselines",
        "supervised",
    )
    config.knn.update(neighbors=(20,), shots=(5,))
    config.attentive_probe.update(weight_decays=(0.0,), epochs=15.0, learning_rates=(3e-3,))
    for module, name in (
        (zero_shot, "text"),
        (anticipation, "anticipation"),
        (depth, "depth"),
        (tracking, "tracking"),
        (label_propagation, "label_propagation"),
    ):
        config[name] = module.get_config("tiny")[name]
    config.text.epochs = 20.0
    # The attention readout would need more epochs to learn the place of its queries.
    config.depth.update(head="linear", learning_rates=(1e-2,), epochs=10.0)
    # Points are followed by label propagation, which needs no training.
    config.tracking.update(targets=("boxes",), learning_rates=(1e-2,), epochs=10.0)
    config.supervised.steps = 30
    config.anticipation.update(
        train_manifest="anticipation/train.csv",
        val_manifest="anticipation/val.csv",
        blocks=0,
        learning_rates=(3e-3,),
        weight_decays=(1e-3,),
        epochs=10.0,
    )
    return config
