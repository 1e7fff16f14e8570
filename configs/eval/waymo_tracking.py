"""Tracking of boxes on Waymo Open (Table 7 of the paper).

    python launch/evaluate.py --config=configs/eval/waymo_tracking.py --checkpoint=FOLDER \
        --config.tracking.root=/data/waymo/boxes --workdir=runs/waymo

The folder contains train/tracks.jsonl, val/tracks.jsonl and the images next to them, as
launch/convert_waymo.py writes them. docs/evaluation/datasets.md describes it and has the result of
the paper. The paper states neither the width of the head nor the optimizer.
"""

import ml_collections

from configs.eval.tasks import tracking


def get_config() -> ml_collections.ConfigDict:
    """Returns the config."""
    config = tracking.get_config("base")
    config.tracking.update(data="boxes", targets=("boxes",), stride=3, fps=5.0)
    config.data.update(frames=16, size=224)
    return config
