"""Training-free propagation of joints on JHMDB, which is not in the paper.

    python launch/evaluate.py --config=configs/eval/jhmdb_propagation.py --checkpoint=FOLDER \
        --config.label_propagation.root=/data/jhmdb --workdir=runs/jhmdb

The folder contains Rename_Images, joint_positions and splits. docs/evaluation/datasets.md describes
it. The protocol is that of RVM (arXiv 2512.13684).
"""

import ml_collections

from configs.eval.tasks import label_propagation


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = label_propagation.get_config("base")
    config.label_propagation.update(data="jhmdb", height=320, width=320)
    return config
