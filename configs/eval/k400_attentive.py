"""Attentive probe on Kinetics-400 (Tables 5 and 15 of the paper).

    python launch/evaluate.py --config=configs/eval/k400_attentive.py --checkpoint=FOLDER \
        --config.data.root=/data/k400 --workdir=runs/k400

The folder contains videos/<youtube_id>_<start>_<end>.mp4, and train.csv and val.csv, which
`prepare_data.py index` writes from annotations/train.csv and annotations/val.csv.
docs/evaluation/datasets.md describes it and has the results of the paper.
"""

import ml_collections

from configs.eval.tasks import attentive_probe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = attentive_probe.get_config("base")
    config.update(train_manifest="train.csv", val_manifest="val.csv", tasks=("class",))
    config.attentive_probe.update(learning_rates=(3e-4,), weight_decays=(0.0,), epochs=20.0)
    config.data.update(frames=16, size=224, short_side=224, flip=True)
    return config
