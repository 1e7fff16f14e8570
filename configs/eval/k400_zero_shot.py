"""Zero-shot classification of Kinetics-400 (Tables 9 and 10 of the paper).

    python launch/evaluate.py --config=configs/eval/k400_zero_shot.py --checkpoint=FOLDER \
        --config.data.root=/data/k400 --config.train_manifest=/data/pairs/train.csv \
        --config.text.train_captions=/data/pairs/annotations/train.json \
        --config.text.encoder=weights/siglip2-base-patch16-224 --workdir=runs/k400_zero_shot

The text is aligned with the frozen encoder on pairs of videos and captions. The classes in
val.classes.json are then recognized by their names.

/data/pairs contains annotations/train.json, train.csv and videos/; /data/k400 contains val.csv,
val.classes.json and videos/. docs/evaluation/datasets.md describes the folders and has the result
of the paper.
"""

import ml_collections

from configs.eval.tasks import zero_shot


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = zero_shot.get_config("base")
    config.update(val_manifest="val.csv", tasks=("class",))
    config.data.update(frames=8, size=224, short_side=224)
    return config
