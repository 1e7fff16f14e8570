"""Depth estimation on KITTI with the attention readout (Table 6 of the paper).

    python launch/evaluate.py --config=configs/eval/kitti_depth.py --checkpoint=FOLDER \
        --config.depth.root=/data/kitti --workdir=runs/kitti

The folder contains <date>/<drive>/image_02/data/<n>.png, and annotated depth in
train/<drive>/proj_depth/groundtruth/image_02/<n>.png and val/<drive>/...
docs/evaluation/datasets.md describes it and has the results of the paper. The paper states neither
the loss nor the optimizer.
"""

import ml_collections

from configs.eval.tasks import depth


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = depth.get_config("base")
    config.depth.update(data="kitti", stride=10, batch_size=128, learning_rates=(3e-3,))
    config.data.update(frames=32, size=224)
    return config
