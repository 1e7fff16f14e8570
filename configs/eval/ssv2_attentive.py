"""Attentive probe on Something-Something v2 (Tables 5 and 15 of the paper).

    python launch/evaluate.py --config=configs/eval/ssv2_attentive.py --checkpoint=FOLDER \
        --config.data.root=/data/ssv2 --workdir=runs/ssv2

The folder contains videos/<id>.webm, and train.csv and val.csv, which `prepare_data.py index`
writes from labels/train.json and labels/validation.json.
docs/evaluation/datasets.md describes it and has the results of the paper.
"""

import ml_collections

from configs.eval.tasks import attentive_probe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = attentive_probe.get_config("base")
    config.update(train_manifest="train.csv", val_manifest="val.csv", tasks=("class",))
    config.attentive_probe.update(learning_rates=(1e-3,), weight_decays=(0.0,), epochs=30.0)
    # Clips are not flipped, because some labels distinguish left from right.
    config.data.update(frames=16, size=224, short_side=224, flip=False)
    return config
