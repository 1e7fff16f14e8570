"""Linear probe on Something-Something v2 (Tables 1 to 4 of the paper).

    python launch/evaluate.py --config=configs/eval/ssv2_linear.py --checkpoint=FOLDER \
        --config.data.root=/data/ssv2 --workdir=runs/ssv2_linear

The paper does not state the hyperparameters. The epochs, the weight decay and the middle learning
rate are those of InternVideo2, whose probe keeps the order of the frames; here, clips are not
augmented.

The folder contains videos/<id>.webm, and train.csv and val.csv, which `prepare_data.py index`
writes from labels/train.json and labels/validation.json.
docs/evaluation/datasets.md describes it and has the results of the paper.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = linear_probe.get_config("base")
    config.update(train_manifest="train.csv", val_manifest="val.csv", tasks=("class",))
    config.poolings = ("frames", "mean", "pool")
    config.features.views = 3
    config.streaming.update(
        epochs=25, warmup_epochs=5, learning_rates=(1e-4, 4e-4, 1e-3), weight_decays=(0.0,)
    )
    config.data.update(frames=8, size=224, short_side=224)
    return config
