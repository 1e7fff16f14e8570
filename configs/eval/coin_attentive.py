"""Attentive probe on COIN (Tables 5 and 15 of the paper).

    python launch/evaluate.py --config=configs/eval/coin_attentive.py --checkpoint=FOLDER \
        --config.data.root=/data/coin --workdir=runs/coin

The folder contains videos/<class>/<youtube_id>.mp4, and train.csv and val.csv, which
`prepare_data.py index` writes from annotations/train.txt and annotations/test.txt.
docs/evaluation/datasets.md describes it and has the results of the paper.
"""

import ml_collections

from configs.eval.tasks import attentive_probe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = attentive_probe.get_config("base")
    config.update(train_manifest="train.csv", val_manifest="val.csv", tasks=("class",))
    config.attentive_probe.update(learning_rates=(2e-4,), weight_decays=(0.0,), epochs=20.0)
    config.data.update(frames=16, size=224, short_side=224, flip=True)
    return config
