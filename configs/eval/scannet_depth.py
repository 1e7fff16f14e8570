"""Depth estimation on ScanNet with the attention readout (Table 6 of the paper).

    python launch/evaluate.py --config=configs/eval/scannet_depth.py --checkpoint=FOLDER \
        --config.depth.root=/data/scannet --workdir=runs/scannet

The folder contains scans/<scene>/color/<n>.jpg, scans/<scene>/depth/<n>.png, train.txt and val.txt.
docs/evaluation/datasets.md describes it and has the results of the paper (delta1 is also in Tables
2 and 4). The paper states neither the loss nor the optimizer.
"""

import ml_collections

from configs.eval.tasks import depth


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = depth.get_config("base")
    config.depth.update(data="scannet", stride=5, batch_size=256, learning_rates=(3e-3,))
    config.data.update(frames=16, size=224)
    return config
