"""Training-free propagation of masks on DAVIS 2017, which is not in the paper.

    python launch/evaluate.py --config=configs/eval/davis_propagation.py --checkpoint=FOLDER \
        --config.label_propagation.root=/data/davis --workdir=runs/davis

The folder contains JPEGImages/480p, Annotations/480p and ImageSets/2017/val.txt.
docs/evaluation/datasets.md describes it. The protocol is that of RVM (arXiv 2512.13684).
"""

import ml_collections

from configs.eval.tasks import label_propagation


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = label_propagation.get_config("base")
    config.label_propagation.update(data="davis", height=480, width=880)
    return config
