"""Baselines on raw pixels: linear probes of the first frame and of all frames without order.

The first frame shows the accuracy that is possible without motion. The bag of frames shows the
accuracy that is possible without the order of the frames.

Shape key: b videos, t frames, h w pixels, c channels, d features.
"""

from typing import Any

import numpy as np
from einops import rearrange, reduce

from invnext_jax.evaluation.evaluators import linear_probe
from invnext_jax.evaluation.evaluators.classification import make_rows
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.inputs import EvalInputs

MAX_SIDE = 32  # pixels; videos are downscaled so that the shorter side has about this size


class PixelBaselines:
    """Linear probes of raw pixels, with one row for each baseline and task."""

    name = "pixel_baselines"
    is_baseline = True
    options = ("inverse_penalties", "held_out")

    def check_config(self, config: Any) -> None:
        """Checks the options of the fit."""
        linear_probe.check_fit_config(config)

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Fits the probes on standardized pixels."""
        train, val = inputs.dataset.videos("train"), inputs.dataset.videos("val")
        rows = []
        for name, make_features in {
            "first_frame": first_frame,
            "bag_of_frames": bag_of_frames,
        }.items():
            data = (make_features(part.video_bthwc) for part in (train, val))
            data = linear_probe.standardize(*data)
            results = linear_probe.fit_linear_tasks(
                data, (train.labels, val.labels), inputs, config
            )
            rows += make_rows(self.name, name, "pixels", results, val.index_b)
        return rows


def first_frame(video_bthwc: np.ndarray) -> np.ndarray:
    """Returns the pixels of the first frame: float32 [b d], values from 0 to 1."""
    return rearrange(_shrink(video_bthwc[:, :1]), "b 1 h w c -> b (h w c)")


def bag_of_frames(video_bthwc: np.ndarray) -> np.ndarray:
    """Returns the mean and standard deviation of each pixel over the frames: float32 [b d]."""
    small_bthwc = _shrink(video_bthwc)
    parts = [small_bthwc.mean(axis=1), small_bthwc.std(axis=1)]
    return np.concatenate([rearrange(part, "b h w c -> b (h w c)") for part in parts], axis=1)


def _shrink(video_bthwc: np.ndarray) -> np.ndarray:
    """Averages square blocks of pixels so that the shorter side becomes about `MAX_SIDE`."""
    block = max(1, min(video_bthwc.shape[2:4]) // MAX_SIDE)
    h, w = (side // block * block for side in video_bthwc.shape[2:4])
    cropped_bthwc = video_bthwc[:, :, :h, :w].astype(np.float32) / 255
    pattern = "b t (h p) (w q) c -> b t h w c"
    return reduce(cropped_bthwc, pattern, "mean", p=block, q=block)
