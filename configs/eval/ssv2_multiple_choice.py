"""SSv2-MC: multiple choice among captions (Tables 9 and 10 of the paper).

    python launch/evaluate.py --config=configs/eval/ssv2_multiple_choice.py --checkpoint=FOLDER \
        --config.data.root=/data/ssv2 --config.train_manifest=/data/pairs/train.csv \
        --config.text.train_captions=/data/pairs/annotations/train.json \
        --config.text.encoder=weights/siglip2-base-patch16-224 --workdir=runs/ssv2_choice

The text is aligned with the frozen encoder on pairs of videos and captions. The candidates of each
video are in annotations/mc.json.

/data/pairs contains annotations/train.json, train.csv and videos/; /data/ssv2 contains
annotations/mc.json, mc.csv and videos/<id>.webm. docs/evaluation/datasets.md describes the folders
and has the result of the paper.
"""

import ml_collections

from configs.eval.tasks import zero_shot


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = zero_shot.get_config("base")
    config.val_manifest = "mc.csv"
    config.text.choices = "annotations/mc.json"
    config.data.update(frames=8, size=224, short_side=224)
    return config
