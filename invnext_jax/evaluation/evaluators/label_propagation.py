"""Training-free label propagation of masks (J and F) and points (PCK).

The labels of the first frame are propagated to all others by the similarity of tokens, without any
trained head. Two reference rows are a lower and an upper baseline: labels that do not move, and the
ground truth at the resolution of the tokens.

Shape key: i videos of the data set, y methods (see `METHODS`), z metrics, t frames, h w pixels,
n tokens, k labels, j points, 2 = (x, y).
"""

from typing import Any

import jax
import numpy as np

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense import first_frame, truth_source, weighted_rows
from invnext_jax.evaluation.dense.propagation import PropagationOptions
from invnext_jax.evaluation.dense.truth_source import WORLD
from invnext_jax.evaluation.dense.video_propagation import VideoPropagation
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.feature_store.state_file import SaveTimer, StateFile
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.metrics import points as point_metrics
from invnext_jax.evaluation.metrics import segmentation
from invnext_jax.evaluation.truth import baselines
from invnext_jax.evaluation.truth.joints import JOINTS
from invnext_jax.evaluation.truth.masks import list_objects
from invnext_jax.evaluation.truth.truth import BadTruth, SkippedRows, Truth, TruthBatches
from invnext_jax.evaluation.truth.world import POINTS
from invnext_jax.monitoring.progress import ProgressMeter

SOURCES = (WORLD, "davis", "jhmdb")
METHODS = ("encoder", "static", "token_truth")
THRESHOLDS = (0.1, 0.2)  # thresholds of PCK
POINT_COUNT = {WORLD: POINTS, "davis": 0, "jhmdb": JOINTS}
Scores = dict[str, np.ndarray]


class LabelPropagation:
    """Propagation of masks and points; see `propagation.propagate_labels`."""

    name = "label_propagation"
    is_baseline = False
    options = ("label_propagation",)
    needs_labels = False

    def needs_manifests(self, config: Any) -> bool:
        """Whether the evaluator reads the manifests; see `Evaluator`."""
        return config.label_propagation.data == WORLD

    def hash_files(self, config: Any) -> str:
        """Returns a hash of the files of the ground truth; see `truth_source.hash_files`."""
        return truth_source.hash_files(config.label_propagation, config, ["val"])

    def check_config(self, config: Any) -> None:
        """Checks `config.label_propagation`."""
        settings, name = config.label_propagation, "config.label_propagation"
        truth_source.check_source(settings, name, SOURCES)
        for field, least in (("context", 1), ("neighbors", 1), ("height", 0), ("width", 0)):
            if settings[field] < least:
                raise UserError(f"{name}.{field}={settings[field]} must be at least {least}")
        if (settings.height > 0) != (settings.width > 0):
            raise UserError(
                f"{name}.height={settings.height} and width={settings.width} must both be 0 or "
                "both be positive"
            )
        for field in ("temperature", "radius"):
            if not settings[field] > 0:
                raise UserError(f"{name}.{field}={settings[field]} must be positive")

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Propagates the labels of all videos."""
        settings, encoder = config.label_propagation, inputs.encoder
        if settings.layer >= encoder.depth:
            raise UserError(
                f"config.label_propagation.layer={settings.layer} must be less than the number of "
                f"layers of the encoder, {encoder.depth}"
            )
        size = (settings.height, settings.width) if settings.height else None
        propagation = VideoPropagation(
            encoder,
            config.data.frames,
            size,
            settings.layer if settings.layer >= 0 else None,
            PropagationOptions(
                settings.context, settings.temperature, settings.neighbors, settings.radius
            ),
        )
        truth = truth_source.open_truth(settings, "val", config)
        json_settings = run_metadata.config_to_json(config)["label_propagation"]
        saved = inputs.state_file(self.name, json_settings, self.hash_files(config))
        skip_last = settings.data == "davis"  # as in the official evaluation
        points = POINT_COUNT[settings.data]
        scores, skipped = score_videos(propagation, truth, points, saved, skip_last=skip_last)
        if text := skipped.describe(len(truth)):
            inputs.notes.add(f"{self.name}: {text}")
        return make_rows(scores, truth, inputs.name)


def score_videos(
    propagation: VideoPropagation,
    truth: Truth,
    points: int,
    saved: StateFile | None = None,
    *,
    skip_last: bool = False,
) -> tuple[Scores, SkippedRows]:
    """Propagates the labels of all videos and scores them.

    Args:
      propagation: the encoder and the options.
      truth: the videos, with "ids", "points" or "joints".
      points: number of points of a video.
      saved: file with the scores so far, from which a repeated command resumes; None to save
        nothing.
      skip_last: see `segmentation.score_masks`.

    Returns:
      "masks" [i y 2], J and F; "objects" [i], their number; "within" [i y], position accuracy;
      "right" [i y z j], whether points are within `THRESHOLDS`, summed over frames; "count" [i j],
      the number of frames in which points are visible; and "is_read" [i]. Unreadable videos have
      zeros. Also the videos that could not be read. A repeated command tries to read them again.
    """
    n, y = len(truth), len(METHODS)
    scores = {
        "masks": np.zeros((n, y, 2)),
        "objects": np.zeros(n),
        "within": np.full((n, y), np.nan),
        "right": np.zeros((n, y, len(THRESHOLDS), points)),
        "count": np.zeros((n, points)),
        "is_read": np.zeros(n, bool),
    }
    if saved:
        scores, _ = saved.restore(scores)
    rows = np.flatnonzero(~scores["is_read"]).tolist()
    timer = SaveTimer(saved)
    batches = TruthBatches(truth, 1, rows=rows, may_be_empty=len(rows) < n)
    with ProgressMeter(n, "video", initial=n - len(rows), quiet=jax.process_index() > 0) as meter:
        for batch in batches:
            row = int(batch["index"][0])
            arrays = {name: x[0] for name, x in batch.items()}
            try:
                found = _score_video(propagation, arrays, skip_last)
            except BadTruth as error:
                batches.skipped.add(row, error)
                continue
            for name, value in {**found, "is_read": True}.items():
                scores[name][row] = value
            done = int(scores["is_read"].sum())
            meter.update(done, "propagated")
            timer.save_if_due(done, scores)
    if not scores["is_read"].any():
        raise UserError(
            f"{LabelPropagation.name}: none of {n} videos can be used "
            f"({batches.skipped.first_reason}): use another size or other videos"
        )
    if rows:
        timer.save(n, scores)
    return scores, batches.skipped


def make_rows(scores: Scores, truth: Truth, name: str) -> list[Row]:
    """Makes the result rows; rows of the reference methods only for the evaluated encoder."""
    rows = []
    count_ij = scores["count"]
    for number, method in enumerate(METHODS if name == "encoder" else METHODS[:1]):

        def add(kind, metric, score_i, weight_i, method=method):
            options = {
                "evaluator": LabelPropagation.name,
                "name": name if method == "encoder" else method,
                "what": "tokens" if method == "encoder" else "truth",
                "task": f"{truth.name} {kind}",
                "names": truth.video_names,
            }
            score_i = np.where(weight_i > 0, score_i, np.nan)
            rows.append(
                weighted_rows.make_row(score_i, weight_i, truth.videos, metric=metric, **options)
            )

        if scores["objects"].any():
            masks_i2 = scores["masks"][:, number]
            for metric, score_i in (
                ("j_and_f", masks_i2.mean(axis=1)),
                ("region_j", masks_i2[:, 0]),
                ("boundary_f", masks_i2[:, 1]),
            ):
                add("masks", metric, score_i, scores["objects"])
        if count_ij.any():
            for place, threshold in enumerate(THRESHOLDS):
                parts = average_points(scores["right"][:, number, place], count_ij)
                add("points", f"pck_{threshold}", *parts)
            within_i = scores["within"][:, number]
            if np.isfinite(within_i).any():
                add("points", "position_accuracy", within_i, np.isfinite(within_i).astype(float))
    return rows


def average_points(right_ij: np.ndarray, count_ij: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes scores and weights [i] of videos whose weighted mean is PCK, see `segmentation.pck`.

    PCK is computed for each point over the frames of all videos, and then averaged over points.

    Args:
      right_ij: number of frames in which each point is correct.
      count_ij: number of frames in which each point is visible.
    """
    total_j = count_ij.sum(axis=0)
    used_j = total_j > 0
    share_ij = count_ij[:, used_j] / total_j[used_j][None]
    weight_i = share_ij.mean(axis=1)
    part_i = (right_ij[:, used_j] / total_j[used_j][None]).mean(axis=1)
    return part_i / np.where(weight_i > 0, weight_i, 1.0), weight_i


def _score_video(propagation: VideoPropagation, truth: Scores, skip_last: bool) -> Scores:
    """Returns the scores of one video; see `score_videos`."""
    video_thwc = truth["video"]
    size = video_thwc.shape[1:3]
    grid = propagation.grid(size)
    labels, objects, points_tj2 = [], [], _point_shares(truth, size)
    if "ids" in truth:
        objects = list_objects(truth["ids"])
        labels.append(first_frame.label_masks(truth["ids"][0], objects, grid, propagation.patch))
    if points_tj2 is not None:
        labels.append(first_frame.label_points(points_tj2[0], grid))
    found_tnk = propagation.propagate(video_thwc, np.concatenate(labels, axis=1))
    scores, masks = {}, len(objects) + 1 if objects else 0
    if objects:
        predicted_thw = _read_ids(propagation, found_tnk[..., :masks], truth["ids"], objects)
        exact_tnk = np.stack(
            [first_frame.label_masks(x, objects, grid, propagation.patch) for x in truth["ids"]]
        )
        exact_thw = _read_ids(propagation, exact_tnk, truth["ids"], objects)
        parts = predicted_thw, baselines.static_masks(truth["ids"]), exact_thw
        scores |= _score_masks(parts, truth["ids"], objects, skip_last)
    if points_tj2 is not None:
        scores |= _score_points(found_tnk[..., masks:], points_tj2, truth, grid, size)
    return scores


def _read_ids(propagation, labels_tnk, ids_thw, objects) -> np.ndarray:
    """Returns the predicted object id of each pixel, int [t h w]."""
    number_thw = propagation.read_masks(labels_tnk, ids_thw.shape[1:])
    return np.array([0, *objects])[number_thw]


def _score_masks(predictions, ids_thw, objects, skip_last) -> Scores:
    """Returns J and F of all methods."""
    found = [
        segmentation.score_masks(part_thw, ids_thw, objects, skip_last=skip_last)
        for part_thw in predictions
    ]
    masks_y2 = np.array([(part.region, part.boundary) for part in found])
    return {"masks": np.nan_to_num(masks_y2), "objects": found[0].objects}


def _point_shares(truth: Scores, size: tuple[int, int]) -> np.ndarray | None:
    """Returns the ground-truth points [t j 2] as fractions of the frame; None if there are none."""
    if "joints" in truth:
        return (np.float64(truth["joints"]) + 0.5) / size[::-1]
    return truth["points"].swapaxes(0, 1) if "points" in truth else None


def _score_points(labels_tnj, points_tj2, truth: Scores, grid, size) -> Scores:
    """Returns the number of correct points of each method."""
    visible_tj = truth["visible"] if "joints" in truth else ~truth["occluded"].T
    exact_tnj = np.stack([first_frame.label_points(points_j2, grid) for points_j2 in points_tj2])
    shares = [
        first_frame.read_points(labels_tnj, grid),
        np.broadcast_to(points_tj2[:1], points_tj2.shape),
        first_frame.read_points(exact_tnj, grid),
    ]
    right, within = [], []
    for predicted_tj2 in shares:
        pixels = (part * size[::-1] for part in (predicted_tj2, points_tj2))
        error_tj = segmentation.joint_errors(*pixels, visible_tj)
        right.append([(error_tj <= threshold).sum(axis=0) for threshold in THRESHOLDS])
        if "points" in truth:
            within.append(_position_accuracy(predicted_tj2, points_tj2, visible_tj))
    scores = {"right": np.array(right), "count": (~np.isnan(error_tj)).sum(axis=0)}
    return {**scores, "within": np.array(within)} if within else scores


def _position_accuracy(predicted_tj2, points_tj2, visible_tj) -> float:
    """Returns the position accuracy of TAP-Vid, with the points of frame 0 as queries."""
    predicted_jt2, points_jt2 = (
        point_metrics.to_raster(part.swapaxes(0, 1)) for part in (predicted_tj2, points_tj2)
    )
    occluded_jt = ~visible_tj.T
    scores = point_metrics.score_points(
        predicted_jt2,
        np.zeros_like(occluded_jt),
        points_jt2,
        occluded_jt,
        np.zeros(len(points_jt2), int),
    )
    return scores.position_accuracy
