"""Tracking of boxes and points by a head on frozen tokens (paper: Table 7, A.4).

The box or the point of the first frame is given, and the head predicts it in the other frames.
Boxes and points that do not move are the lower baseline.

Shape key: b clips, n clips of a split, t frames, k objects or points, z metrics, 2 = (x, y).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense import head_fitting, truth_clips, truth_source, weighted_rows
from invnext_jax.evaluation.dense.head_fitting import HeadFitting
from invnext_jax.evaluation.dense.truth_source import WORLD
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.heads import box_losses, grid_selection
from invnext_jax.evaluation.heads.tracking_readout import TrackingReadout
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.metrics import boxes as box_metrics
from invnext_jax.evaluation.metrics import points as point_metrics
from invnext_jax.evaluation.truth import baselines
from invnext_jax.evaluation.truth.truth import SkippedRows, Truth, TruthBatches
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.objectives.losses import masked_mean

SOURCES = (WORLD, "boxes")
TARGETS = {"boxes": ("boxes", "present"), "points": ("points", "occluded")}
METRICS = {
    "boxes": ("mean_iou",),
    "points": ("average_jaccard", "position_accuracy", "occlusion_accuracy"),
}
Batch = dict[str, Any]


class Tracking:
    """Heads that track boxes and, in the synthetic world, points."""

    name = "tracking"
    is_baseline = False
    options = ("tracking",)
    needs_labels = False

    def needs_manifests(self, config: Any) -> bool:
        """Whether the evaluator reads the manifests; see `registry.needs_manifests`."""
        return config.tracking.data == WORLD

    def hash_files(self, config: Any) -> str:
        """Returns a hash of the files of the ground truth; see `truth_source.hash_files`."""
        return truth_source.hash_files(config.tracking, config)

    def check_config(self, config: Any) -> None:
        """Checks `config.tracking`."""
        settings, name = config.tracking, "config.tracking"
        truth_source.check_source(settings, name, SOURCES)
        head_fitting.check_settings(settings, name)
        if not settings.targets or set(settings.targets) - set(TARGETS):
            raise UserError(
                f"{name}.targets={settings.targets} must have one or more of {tuple(TARGETS)}"
            )
        if settings.data != WORLD and "points" in settings.targets:
            raise UserError(
                f"{name}.targets has 'points', but only the synthetic world has ground truth for "
                "points: remove it"
            )
        if settings.append_positions and settings.width % 16:
            raise UserError(
                f"{name}.width={settings.width} must be divisible by 16 with append_positions=True"
            )
        if settings.fps < 0:
            raise UserError(f"{name}.fps={settings.fps} must not be negative")

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains the heads of each kind of target and scores them on the held-out clips."""
        settings, rows = config.tracking, []
        if config.data.frames < 2:
            raise UserError("tracking needs at least two frames: raise config.data.frames")
        truths, source = head_fitting.open_truths(inputs, settings)
        share = grid_selection.held_out_share(settings)
        train_rows, held_rows = truth_clips.hold_out_videos(
            truths["train"].videos, share, config.seed
        )
        key = run_metadata.config_to_json(config)["tracking"], self.hash_files(config)
        for target in settings.targets:
            names, title = (source, *TARGETS[target]), f"{self.name} of {target}, {inputs.name}"
            clips = truth_clips.TruthClips(truths["train"], train_rows, names)
            fitting = make_fitting(inputs.encoder, config, target)
            trained = fitting.train(
                clips,
                LOSSES[target],
                settings,
                seed=config.seed,
                name=title,
                saved=inputs.state_file(f"{self.name}-{target}", *key, target),
            )
            clips.close()
            note = functools.partial(head_fitting.note_skipped, inputs, self.name)
            note("training clips", clips.skipped, len(train_rows))
            score = _Scoring(fitting, trained.params, target, names, config.batch_size, title)
            held = score(truths["train"], held_rows) if len(held_rows) else None
            note("training clips that select the head", score.skipped, len(held_rows))
            val = score(truths["val"], np.arange(len(truths["val"])))
            note("held-out clips", score.skipped, len(truths["val"]))
            errors = [part and -_mean_score(part) for part in (held, val)]
            chosen = head_fitting.choose_heads(settings, trained, *errors)
            task = target if settings.data == "boxes" else f"{settings.data} {target}"
            rows += _make_rows(val, chosen, trained, target, task, inputs.name)
        return rows


def make_fitting(encoder: Any, config: Any, target: str) -> HeadFitting:
    """Makes the head for "boxes" or "points". It predicts the change since the first frame."""
    settings, t = config.tracking, config.data.frames
    frames, outputs = (t - 1, 4) if target == "boxes" else (t, 3)
    rows = config.data.size // encoder.patch
    module = TrackingReadout(
        frames,
        outputs,
        settings.width,
        settings.heads,
        settings.query_width,
        tokens=frames if settings.query_per_frame else 1,
        grid=(rows, rows) if settings.append_positions else None,
    )

    def init_params(key, tokens):
        width = 4 if target == "boxes" else 3
        return nn.unbox(module.init(key, tokens, jnp.zeros((1, 1, width)))["params"])

    def predict(params, tokens, arrays):
        if target == "boxes":
            first_bk4 = arrays["boxes"][:, 0]
            change_btk4 = module.apply({"params": params}, tokens, first_bk4)
            return first_bk4[:, None] + change_btk4
        first_bk2 = arrays["points"][:, :, 0]
        time_bk1 = jnp.zeros_like(first_bk2[..., :1])
        query_bk3 = jnp.concatenate([time_bk1, first_bk2], axis=-1)
        found_btk3 = module.apply({"params": params}, tokens, query_bk3)
        start_btk3 = jnp.concatenate([first_bk2, time_bk1], axis=-1)[:, None]
        return rearrange(start_btk3 + found_btk3, "b t k c -> b k t c")

    return HeadFitting(encoder, (), init_params, predict)


def box_loss(predicted_btk4: jax.Array, arrays: Batch) -> jax.Array:
    """Computes the loss of the boxes in all later frames, for the objects of the first frame."""
    present_btk = arrays["present"][:, 1:] & arrays["present"][:, :1]
    return box_losses.box_loss(predicted_btk4, arrays["boxes"][:, 1:], present_btk)


def point_loss(predicted_bkt3: jax.Array, arrays: Batch) -> jax.Array:
    """Computes the smooth L1 loss of visible points plus the cross-entropy of the occlusion."""
    visible_bkt = ~arrays["occluded"]
    error_bkt = jnp.mean(box_losses.smooth_l1(predicted_bkt3[..., :2], arrays["points"]), axis=-1)
    entropy = optax.sigmoid_binary_cross_entropy(
        predicted_bkt3[..., 2], arrays["occluded"].astype(jnp.float32)
    )
    return masked_mean(error_bkt, visible_bkt) + 0.1 * jnp.mean(entropy)


LOSSES: dict[str, Callable[[Any, Batch], jax.Array]] = {"boxes": box_loss, "points": point_loss}


class _Scoring:
    """Scores all heads of a grid, and targets that do not move, on clips.

    Attributes:
      skipped: the rows that could not be read in the latest call.
    """

    def __init__(self, fitting, params, target: str, names, batch_size: int, title: str):
        self._fitting, self._params, self._names = fitting, params, names
        self._batch_size, self._title, self.skipped = batch_size, title, SkippedRows()
        self._score = score_boxes if target == "boxes" else score_points

    def __call__(self, truth: Truth, rows_n) -> dict[str, np.ndarray]:
        """Returns the scores of the clips.

        Returns:
          "heads" [g n z], "static" [n z], "weights" [n], "videos" [n], and "names" of all videos.
        """
        batches = TruthBatches(truth, self._batch_size, rows=[int(row) for row in rows_n])
        heads, static, weights, index = [], [], [], []
        with ProgressMeter(len(rows_n), "clip", quiet=jax.process_index() > 0) as meter:
            for predicted, batch in self._fitting.predict(self._params, batches, self._names):
                for i in range(len(batch["index"])):
                    arrays = {name: batch[name][i] for name in self._names}
                    found = [self._score(one[i], arrays) for one in predicted]
                    heads.append([score_z for score_z, _ in found])
                    score_z, weight = self._score(None, arrays)
                    static.append(score_z)
                    weights.append(weight)
                index += batch["index"].tolist()
                meter.update(len(index), f"{self._title}, scored")
        self.skipped = batches.skipped
        return {
            "heads": np.array(heads).swapaxes(0, 1),
            "static": np.array(static),
            "weights": np.array(weights, float),
            "videos": truth.videos[np.array(index)],
            "names": truth.video_names,
        }


def score_boxes(predicted_tk4: np.ndarray | None, arrays: Batch) -> tuple[list[float], int]:
    """Scores the boxes of a clip.

    Args:
      predicted_tk4: boxes in the frames after the first; None for boxes that do not move.
      arrays: "boxes" [t k 4] and "present" [t k].

    Returns:
      The mean IoU, and the number of (object, frame) pairs.
    """
    boxes_tk4 = arrays["boxes"]
    static_tk4 = baselines.static_boxes(boxes_tk4)
    if predicted_tk4 is not None:
        static_tk4 = np.concatenate([boxes_tk4[:1], predicted_tk4])
    found = box_metrics.score_tracks(static_tk4, boxes_tk4, arrays["present"])
    return [found.mean_iou], found.pairs


def score_points(predicted_kt3: np.ndarray | None, arrays: Batch) -> tuple[list[float], int]:
    """Scores the points of a clip by the metrics of TAP-Vid; see `score_boxes`.

    Args:
      predicted_kt3: positions and logits of the occlusion; None for visible points that do not
        move.
      arrays: "points" [k t 2] and "occluded" [k t].

    Returns:
      The values of `METRICS`, and the weight 1, or 0 for a clip without visible points.
    """
    points_kt2, query_k = arrays["points"], np.zeros(len(arrays["points"]), int)
    position_kt2 = baselines.static_points(points_kt2, query_k)
    hidden_kt = np.zeros(points_kt2.shape[:2], bool)
    if predicted_kt3 is not None:
        position_kt2, hidden_kt = predicted_kt3[..., :2], predicted_kt3[..., 2] > 0
    found = point_metrics.score_points(
        point_metrics.to_raster(position_kt2),
        hidden_kt,
        point_metrics.to_raster(points_kt2),
        arrays["occluded"],
        query_k,
    )
    values = [getattr(found, name) for name in METRICS["points"]]
    return values, int(np.isfinite(values[0]))


def _mean_score(scores: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the weighted mean [g] of the first metric."""
    score_gn, weight_n = np.nan_to_num(scores["heads"][:, :, 0]), scores["weights"]
    return score_gn @ weight_n / max(weight_n.sum(), 1e-9)


def _make_rows(val, chosen, trained, target: str, task: str, name: str) -> list[Row]:
    """Makes the result rows; rows of static predictions only for the evaluated encoder."""
    parts = []
    for suffix, head in chosen.items():
        details = {
            **trained.settings[head]._asdict(),
            "train_loss": float(trained.loss_g[head]),
            "diverged": bool(trained.diverged_g[head]),
        }
        parts.append((name, f"readout{suffix}", val["heads"][head], details))
    if name == "encoder":
        parts.append(("static", "truth", val["static"], {}))
    return [
        weighted_rows.make_row(
            score_n,
            val["weights"],
            val["videos"],
            evaluator=Tracking.name,
            name=kind,
            what=what,
            task=task,
            metric=metric,
            names=val["names"],
            **details,
        )
        for kind, what, scores_nz, details in parts
        for score_n, metric in zip(scores_nz.T, METRICS[target], strict=True)
    ]
