"""Baselines without an encoder: linear probes of raw pixels and random forests of true boxes.

The first frame shows the accuracy that is possible without motion, and the bag of frames the
accuracy that is possible without the order of the frames. Random forests are used for the boxes of
the synthetic world because motion is not a linear function of them. The ordered boxes show the
accuracy that is possible with a perfect tracker.

Shape key: b videos, t frames, h w pixels, c channels, k objects, d features (of a box: corners
x0 y0 x1 y1, visibility).
"""

import functools
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from einops import rearrange, reduce

from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.evaluation_data import SPLITS
from invnext_jax.evaluation.evaluators import linear_probe
from invnext_jax.evaluation.evaluators.classification import (
    ClassifierResult,
    fit_tasks,
    make_rows,
    score_predictions,
)
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.truth import world
from invnext_jax.evaluation.truth.truth import BadTruth

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


class BoxBaselines:
    """Random forests on ground-truth boxes; no rows if the data has no ground truth."""

    name = "box_baselines"
    is_baseline = True
    options = ("trees",)

    def hash_files(self, config: Any) -> str:
        """Returns a hash of the files of the ground truth."""
        return truth_source.hash_world(config)

    def check_config(self, config: Any) -> None:
        """Checks the number of trees."""
        if config.trees < 1:
            raise UserError(f"config.trees={config.trees} must be at least 1")

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Fits one forest for each baseline and task."""
        dataset = inputs.dataset
        parts = [dataset.videos(split) for split in SPLITS]
        boxes = [
            load_boxes(map(dataset.read_manifest(split).paths.__getitem__, part.index_b))
            for split, part in zip(SPLITS, parts, strict=True)
            if dataset.manifests[split]
        ]
        if len(boxes) < len(SPLITS) or any(box is None for box in boxes):
            inputs.notes.add(
                "The box baselines are skipped: they need the ground truth of a world next to the "
                "folders of its videos."
            )
            return []
        fit = functools.partial(fit_forest, trees=config.trees, seed=config.seed)
        labels = [part.labels for part in parts]
        rows = []
        for name, make_features in {
            "first_frame": first_box,
            "bag_of_frames": bag_of_boxes,
            "ordered_track": ordered_boxes,
        }.items():
            data = [make_features(box) for box in boxes]
            results = fit_tasks(data, labels, dataset.tasks, fit)
            rows += make_rows(self.name, name, "boxes", results, parts[1].index_b)
        return rows


def fit_forest(
    train_bd: np.ndarray,
    train_labels_b: np.ndarray,
    val_bd: np.ndarray,
    val_labels_b: np.ndarray,
    *,
    trees: int = 200,
    seed: int = 0,
) -> ClassifierResult:
    """Fits a random forest to [b d] features and measures its accuracy on the held-out videos."""
    from sklearn.ensemble import RandomForestClassifier  # slow, and only needed here

    start = time.perf_counter()
    model = RandomForestClassifier(trees, random_state=seed, n_jobs=-1)
    model.fit(train_bd, train_labels_b)
    predictions = model.predict(train_bd), model.predict(val_bd)
    return score_predictions(predictions, (train_labels_b, val_labels_b), start=start)


def load_boxes(videos: Iterable[str]) -> np.ndarray | None:
    """Reads ground-truth boxes of the synthetic world.

    Args:
      videos: paths of the videos. The boxes of world/train/000003.mp4 are in
        world/gt/train/000003.npz.

    Returns:
      Box corners in [0, 1] and the object's visibility, float32 [b t k 5]; None if there is no
      ground truth, or a file is damaged.
    """
    paths = [world.find_file(Path(video)) for video in videos]
    if not all(os.path.isfile(path) for path in paths):
        return None
    tracks = []
    try:
        for path in paths:
            truth = world.read_arrays(path, ("boxes", "visible"))
            visible_tk1 = truth["visible"].astype(np.float32)[..., None]
            tracks.append(np.concatenate([truth["boxes"], visible_tk1], axis=-1))
        return np.stack(tracks).astype(np.float32)
    except (BadTruth, ValueError) as error:  # ValueError: the shapes do not match
        logging.warning("the boxes in %s are damaged and skipped: %r", path, error)
        return None


def first_box(box_btkd: np.ndarray) -> np.ndarray:
    """Returns the boxes of the first frame: [b d]."""
    return rearrange(box_btkd[:, 0], "b k d -> b (k d)")


def bag_of_boxes(box_btkd: np.ndarray) -> np.ndarray:
    """Returns the boxes of all frames, sorted by position and not by time: [b d].

    The boxes of each object are sorted once by column and once by row, so that only their temporal
    order is lost.
    """
    # Coordinates are rounded, and ties are broken by all coordinates, because tied boxes would
    # otherwise keep their temporal order.
    corners_btkd = np.round(box_btkd, 4)
    center_btk2 = (corners_btkd[..., 0:2] + corners_btkd[..., 2:4]).round(3)
    parts = [box_btkd.mean(axis=1), box_btkd.std(axis=1)]
    parts = [rearrange(part, "b k d -> b (k d)") for part in parts]
    rest = [corners_btkd[..., i] for i in range(corners_btkd.shape[-1])]
    for first, second in ((0, 1), (1, 0)):
        keys = (
            *rest,
            center_btk2[..., second],
            center_btk2[..., first],
        )  # the last key is the primary one
        order_btk = np.lexsort(keys, axis=1)
        sorted_btkd = np.take_along_axis(corners_btkd, order_btk[..., None], axis=1)
        parts.append(rearrange(sorted_btkd, "b t k d -> b (t k d)"))
    return np.concatenate(parts, axis=1)


def ordered_boxes(box_btkd: np.ndarray) -> np.ndarray:
    """Returns boxes in temporal order and the displacements of their centers modulo 1: [b d]."""
    center_btk2 = (box_btkd[..., 0:2] + box_btkd[..., 2:4]) / 2
    step_btk2 = (np.diff(center_btk2, axis=1) + 0.5) % 1.0 - 0.5
    return np.concatenate(
        [
            rearrange(box_btkd, "b t k d -> b (t k d)"),
            rearrange(step_btk2, "b t k d -> b (t k d)"),
            rearrange(np.median(step_btk2, axis=1), "b k d -> b (k d)"),
        ],
        axis=1,
    )
