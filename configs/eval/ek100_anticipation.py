"""Action anticipation on EPIC-KITCHENS-100 (Table 8 of the paper).

    python launch/evaluate.py --config=configs/eval/ek100_anticipation.py --checkpoint=FOLDER \
        --config.data.root=/data/ek100 --workdir=runs/ek100

The folder contains train.csv and val.csv, as launch/convert_epic_kitchens.py writes them.
docs/evaluation/datasets.md describes it and has the results of the paper. The protocol is that of
V-JEPA 2; the paper does not state how the encoder and the predictor divide the frames.
"""

import ml_collections

from configs.eval.tasks import anticipation


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = anticipation.get_config("base")
    config.update(train_manifest="train.csv", val_manifest="val.csv")
    config.anticipation.update(recall_at=(5,), epochs=20.0, batch_size=128)
    config.data.update(frames=24, size=224)
    return config
