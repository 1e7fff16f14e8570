"""All evaluations of the synthetic world, each with its baselines.

    python launch/evaluate.py --config=configs/eval/world.py --checkpoint=runs/s2 --workdir=runs/e2

The encoder and the same encoder with random initialization are evaluated in the same way. The other
baselines use less or different information: the first frame, the frames without their order,
ground-truth boxes, and labels for supervised training. With a small encoder, this takes a few
minutes on two CPU cores.
"""

import ml_collections

from configs.eval import attentive_probe, label_propagation


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
        "label_propagation",
        "pixel_baselines",
        "box_baselines",
        "supervised",
    )
    config.knn.update(neighbors=(20,), shots=(5,))
    config.attentive_probe.update(weight_decays=(0.0,), epochs=15.0)
    config.label_propagation = label_propagation.get_config("tiny").label_propagation
    return config
