"""Linear probe on Kinetics-400 (Tables 1 to 4 of the paper).

    python launch/evaluate.py --config=configs/eval/k400_linear.py --checkpoint=FOLDER \
        --config.data.root=/data/k400 --workdir=runs/k400_linear

The paper does not state the hyperparameters. The epochs, the weight decay and the middle learning
rate are those of InternVideo2, whose probe uses the output of the pool and RandAugment; here, clips
are not augmented.

The folder contains videos/<youtube_id>_<start>_<end>.mp4, and train.csv and val.csv, which
`prepare_data.py index` writes from annotations/train.csv and annotations/val.csv.
docs/evaluation/datasets.md describes it and has the results of the paper.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = linear_probe.get_config("base")
    config.update(train_manifest="train.csv", val_manifest="val.csv", tasks=("class",))
    config.poolings = ("pool", "mean", "frames")
    config.features.views = 3
    config.streaming.update(
        epochs=15, warmup_epochs=3, learning_rates=(1e-3, 4e-3, 1e-2), weight_decays=(0.0,)
    )
    config.data.update(frames=8, size=224, short_side=224)
    return config
