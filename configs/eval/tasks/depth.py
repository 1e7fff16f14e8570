"""Depth estimation with a trained head on the tokens of a frozen encoder.

    python launch/evaluate.py --config=configs/eval/tasks/depth.py:tiny --checkpoint=runs/s2 \
        --workdir=runs/e2

scannet_depth.py and kitti_depth.py are based on the base variant and have the values of the paper.
"""

import ml_collections

from configs.eval.tasks import linear_probe


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """Returns the config of a variant: tiny (the synthetic world) or base."""
    config = linear_probe.get_config(variant)
    config.evaluators = ("depth",)
    config.depth = ml_collections.ConfigDict(
        {
            # "world": the synthetic world of the two manifests; "scannet" or "kitti": folders.
            "data": "world",
            "root": "",  # Folder of ScanNet or KITTI.
            "stride": 5,  # Frames between the starts of two windows, for ScanNet and KITTI.
            # "attention": the readout of 4DS, as in the paper; "dpt": Video-Depth-Anything;
            # "linear": one linear layer on each token, which needs the fewest steps.
            "head": "attention",
            # "l2" and "silog": depth in meters. "video": the loss of Video-Depth-Anything on
            # disparity, which ignores scale and shift; only aligned metrics are measured.
            "loss": "l2",
            "width": 1536,  # Width of the attention readout.
            "heads": 16,  # Attention heads, also of the temporal modules of the DPT head.
            "output_frames": 1,  # Frames of an output patch of the attention readout, 1 or 2.
            "dpt_channels": (256, 512, 1024, 1024),  # DPT: channels of the four feature maps.
            "dpt_width": 256,  # DPT: channels of the fused maps.
            "dpt_temporal": True,  # DPT: whether attention over time is used.
            "dpt_groups": 32,  # DPT: groups of the GroupNorms of the temporal modules.
            # Learning rates and weight decays of the grid. All pairs are trained in one run.
            "learning_rates": (3e-3,),
            "weight_decays": (1e-4,),
            "batch_size": 256,  # Clips per step.
            "epochs": 30.0,  # Passes over the training clips.
            "warmup_epochs": 1.0,  # Epochs of linear warm-up, followed by a cosine decay to 0.
            # Fraction of the training videos that are held out to select a head of a grid. The
            # heads are not trained on them. A single head is trained on all videos.
            "held_out": 0.1,
            "memory_gb": 8.0,  # Clips of a split up to this size in total are kept in memory.
        }
    )
    if variant == "tiny":
        config.depth.update(
            width=64,
            heads=4,
            dpt_channels=(16, 16, 32, 32),
            dpt_width=16,
            dpt_groups=8,
            batch_size=32,
            learning_rates=(3e-3, 1e-2),
        )
    return config
