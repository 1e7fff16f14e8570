"""Tracking of the boxes and points of the first frame, by a head on frozen tokens.

    python launch/evaluate.py --config=configs/eval/tasks/tracking.py:tiny --checkpoint=runs/s2 \
        --workdir=runs/e2

waymo_tracking.py is based on the base variant.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base (boxes)."""
    config = linear_probe.get_config(variant)
    config.evaluators = ("tracking",)
    config.tracking = ml_collections.ConfigDict(
        {
            # "world": boxes and points of the synthetic world of the two manifests; "boxes":
            # train/tracks.jsonl and val/tracks.jsonl in `root`.
            "data": "world",
            "root": "",  # Folder of the boxes.
            "targets": ("boxes",),  # "boxes" and, only for the world, "points".
            "stride": 3,  # Minimum frames between the starts of two windows, for boxes.
            # Frames per second of windows of boxes. Every n-th frame of a video is used, with the
            # nearest rate; a note has the rates that differ. 0 keeps all frames.
            "fps": 5.0,
            "width": 1024,  # Width of the attention readout.
            "heads": 4,  # Attention heads.
            # Whether each predicted frame has its own query token, instead of one for all frames.
            "query_per_frame": False,
            # Whether sin-cos embeddings of time, row and column are appended to the tokens, for
            # encoders whose tokens contain little about their position.
            "append_positions": False,
            "query_width": 512,  # Width of the MLP on the Fourier features of a box or point.
            # Learning rates and weight decays of the grid. All pairs are trained in one run. The
            # paper states none; 4DS uses a learning rate of 3e-4.
            "learning_rates": (3e-4,),
            "weight_decays": (1e-4,),
            "batch_size": 64,  # Clips per step.
            "epochs": 30.0,  # Passes over the training clips.
            "warmup_epochs": 1.0,  # Epochs of linear warm-up, followed by a cosine decay to 0.
            # Fraction of the training videos that are held out to select a head of a grid. The
            # heads are not trained on them. A single head is trained on all videos.
            "held_out": 0.1,
            "memory_gb": 8.0,  # Clips of a split up to this size in total are kept in memory.
        }
    )
    if variant == "tiny":
        config.tracking.update(
            targets=("boxes", "points"),
            width=64,
            query_per_frame=True,
            append_positions=True,
            query_width=64,
            batch_size=32,
            learning_rates=(1e-3, 3e-3),
        )
    return config
