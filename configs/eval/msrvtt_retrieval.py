"""Zero-shot retrieval of videos and texts on MSR-VTT (Tables 9 and 10 of the paper).

    python launch/evaluate.py --config=configs/eval/msrvtt_retrieval.py --checkpoint=FOLDER \
        --config.data.root=/data/msrvtt --config.train_manifest=/data/pairs/train.csv \
        --config.text.train_captions=/data/pairs/annotations/train.json \
        --config.text.encoder=weights/siglip2-base-patch16-224 --workdir=runs/msrvtt

The text is aligned with the frozen encoder on pairs of videos and captions. The captions of
annotations/test.json are then matched with the videos of test.csv.

/data/pairs contains annotations/train.json, train.csv and videos/; /data/msrvtt contains
annotations/test.json, test.csv and videos/<video>.mp4. docs/evaluation/datasets.md describes the
folders and has the result of the paper.
"""

import ml_collections

from configs.eval.tasks import zero_shot


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = zero_shot.get_config("base")
    config.val_manifest = "test.csv"
    config.text.val_captions = "annotations/test.json"
    config.data.update(frames=8, size=224, short_side=224)
    return config
