"""Depth estimation with trained heads on a frozen encoder (paper: Tables 2, 4 and 6, A.3).

Three predictions that need no encoder are lower baselines: the mean depth of all training pixels,
the mean depth of each pixel, and the true depth of the first frame.

Shape key: b clips, n clips of a split, t frames, h w pixels, l layers, n tokens, d width, g heads
of the grid, z metrics.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation.dense import head_fitting, truth_clips, truth_source, weighted_rows
from invnext_jax.evaluation.dense.head_fitting import HeadFitting
from invnext_jax.evaluation.dense.truth_source import WORLD
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.heads import depth_losses, dpt_head, grid_selection
from invnext_jax.evaluation.heads.depth_readout import (
    DepthReadout,
    LinearDepthReadout,
    output_patch,
)
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.metrics import depth as metrics
from invnext_jax.evaluation.metrics.depth import DepthRange
from invnext_jax.evaluation.truth.baselines import MeanDepth
from invnext_jax.evaluation.truth.truth import SkippedRows, Truth, TruthBatches
from invnext_jax.monitoring.progress import ProgressMeter

LIMITS = {WORLD: metrics.WORLD, "scannet": metrics.SCANNET, "kitti": metrics.KITTI}
HEADS = ("attention", "linear", "dpt")
METRICS = ("abs_rel", "delta1", "aligned_abs_rel", "aligned_delta1")
BASELINES = ("constant", "pixel_mean", "static")
MEAN_CLIPS = 512  # training clips from which the mean depth is computed
DISPARITY = "video"  # the loss that ignores scale and shift; its heads predict disparity


class Depth:
    """Heads for depth: the attention readout of 4DS, a linear layer, or the DPT head."""

    name = "depth"
    is_baseline = False
    options = ("depth",)
    needs_labels = False

    def needs_manifests(self, config: Any) -> bool:
        """Whether the evaluator reads the manifests; see `registry.needs_manifests`."""
        return config.depth.data == WORLD

    def hash_files(self, config: Any) -> str:
        """Returns a hash of the files of the ground truth; see `truth_source.hash_files`."""
        return truth_source.hash_files(config.depth, config)

    def check_config(self, config: Any) -> None:
        """Checks `config.depth`."""
        settings, name = config.depth, "config.depth"
        truth_source.check_source(settings, name, tuple(LIMITS))
        for field, choices in (("head", HEADS), ("loss", tuple(depth_losses.LOSSES))):
            if settings[field] not in choices:
                raise UserError(f"{name}.{field}={settings[field]!r} must be one of {choices}")
        head_fitting.check_settings(settings, name)
        if settings.output_frames not in (1, 2):
            raise UserError(f"{name}.output_frames={settings.output_frames} must be 1 or 2")
        if settings.head == "dpt":
            sizes = (settings.dpt_width, *settings.dpt_channels)
            if len(sizes) != 5 or any(size % settings.dpt_groups for size in sizes):
                raise UserError(
                    f"{name}.dpt_channels={tuple(settings.dpt_channels)} must be four numbers; "
                    f"they and dpt_width={settings.dpt_width} must be divisible by "
                    f"dpt_groups={settings.dpt_groups}"
                )

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains the heads and scores them on the held-out clips."""
        settings, limits = config.depth, LIMITS[config.depth.data]
        truths, source = head_fitting.open_truths(
            inputs, settings, several_layers=settings.head == "dpt"
        )
        share = grid_selection.held_out_share(settings)
        train_rows, held_rows = truth_clips.hold_out_videos(
            truths["train"].videos, share, config.seed
        )
        sample = truth_clips.read_sample(truths["train"], train_rows, MEAN_CLIPS)
        mean = MeanDepth.of_clips((arrays["depth"] for arrays in sample), limits)
        fitting = make_fitting(inputs.encoder, config, mean.constant)
        clips = truth_clips.TruthClips(truths["train"], train_rows, (source, "depth"))
        json_settings = run_metadata.config_to_json(config)["depth"]
        title = f"{self.name}, {inputs.name}"
        trained = fitting.train(
            clips,
            make_loss(settings.loss, limits),
            settings,
            seed=config.seed,
            name=title,
            saved=inputs.state_file(self.name, json_settings, self.hash_files(config)),
        )
        clips.close()
        note = functools.partial(head_fitting.note_skipped, inputs, self.name)
        note("training clips", clips.skipped, len(train_rows))
        score = _Scoring(fitting, trained.params, limits, config, source, title)
        held = score(truths["train"], held_rows) if len(held_rows) else None
        note("training clips that select the head", score.skipped, len(held_rows))
        is_encoder = inputs.name == "encoder"
        val = score(truths["val"], np.arange(len(truths["val"])), mean if is_encoder else None)
        note("held-out clips", score.skipped, len(truths["val"]))
        errors = [
            None if part is None else _mean_error(part["heads"], settings) for part in (held, val)
        ]
        chosen = head_fitting.choose_heads(settings, trained, *errors)
        return _make_rows(val, chosen, trained, truths["val"], inputs.name, settings)


def make_fitting(encoder: Any, config: Any, mean_depth: float) -> HeadFitting:
    """Makes the head that a config describes.

    Args:
      encoder: the frozen encoder.
      config: the config of the evaluation.
      mean_depth: mean depth of the training clips in meters; initial predictions are close to it.

    Raises:
      UserError: the encoder has too few layers for the DPT head, or an odd patch size with two
        output frames.
    """
    settings, data = config.depth, config.data
    is_disparity, layers = settings.loss == DISPARITY, ()
    # The initial predictions are near the mean depth.
    scale, shift = (1.0, 1 / mean_depth) if is_disparity else (mean_depth / 4, mean_depth)
    if settings.head == "dpt":
        module: nn.Module = _make_dpt_head(encoder, settings, data.size)
        try:
            layers = dpt_head.tapped_layers(encoder.depth)
        except ValueError as error:
            raise UserError(f'config.depth.head="dpt" needs four layers: {error}') from error
        scale, shift = (1.0 if is_disparity else mean_depth), 0.0
    elif settings.head == "linear":
        patch = encoder.tubelet, encoder.patch, encoder.patch
        module = LinearDepthReadout((data.size // encoder.patch,) * 2, patch)
    else:
        try:
            patch = output_patch(encoder.patch, settings.output_frames)
        except ValueError as error:
            raise UserError(f"config.depth.output_frames: {error}") from error
        video = data.frames, data.size, data.size
        module = DepthReadout(video, patch, settings.width, settings.heads)

    def init_params(key, tokens):
        return nn.unbox(module.init(key, tokens)["params"])

    def predict(params, tokens, arrays):
        del arrays
        depth_bthw = module.apply({"params": params}, tokens) * scale + shift
        repeats = data.frames // depth_bthw.shape[1]
        return jnp.repeat(depth_bthw, repeats, axis=1)

    return HeadFitting(encoder, layers, init_params, predict)


def _make_dpt_head(encoder: Any, settings: Any, size: int) -> dpt_head.DptHead:
    return dpt_head.DptHead(
        (size // encoder.patch,) * 2,
        encoder.patch,
        tuple(settings.dpt_channels),
        settings.dpt_width,
        settings.dpt_temporal,
        settings.heads,
        settings.dpt_groups,
    )


def make_loss(name: str, limits: DepthRange) -> Callable[[Any, Any], jax.Array]:
    """Returns a function (predictions, arrays) -> loss. `name` is one of `depth_losses.LOSSES`."""

    def loss(predicted_bthw, arrays):
        depth_bthw = arrays["depth"]
        above = depth_bthw >= limits.low if limits.includes_low else depth_bthw > limits.low
        valid_bthw = above & (depth_bthw <= limits.high) & jnp.isfinite(depth_bthw)
        if name == DISPARITY:
            depth_bthw = 1 / jnp.where(valid_bthw, depth_bthw, 1.0)
        return depth_losses.LOSSES[name](predicted_bthw, depth_bthw, valid_bthw)

    return loss


class _Scoring:
    """Scores all heads of a grid, and constant predictions, on clips.

    Attributes:
      skipped: the rows that could not be read in the latest call.
    """

    def __init__(self, fitting, params, limits: DepthRange, config: Any, source: str, title: str):
        self._fitting, self._params, self._limits = fitting, params, limits
        self._batch_size, self._source, self._title = config.batch_size, source, title
        self._is_disparity = config.depth.loss == DISPARITY
        self.skipped = SkippedRows()

    def __call__(self, truth: Truth, rows_n, mean: MeanDepth | None = None) -> dict[str, Any]:
        """Returns the scores of the clips.

        Returns:
          "heads" [g n z]; "rows" [n], without bad rows; "videos" [n]; and, if `mean` is given,
          the scores [n z] of the predictions in `BASELINES`.
        """
        batches = TruthBatches(truth, self._batch_size, rows=[int(row) for row in rows_n])
        found = {name: [] for name in ("heads", "rows", *BASELINES)}
        with ProgressMeter(len(rows_n), "clip", quiet=jax.process_index() > 0) as meter:
            for predicted_gbthw, batch in self._fitting.predict(
                self._params, batches, (self._source,)
            ):
                for i, depth_thw in enumerate(batch["depth"]):
                    found["heads"].append([self._score(x[i], depth_thw) for x in predicted_gbthw])
                    if mean is not None:
                        predicted = (
                            mean.predict_constant(depth_thw.shape),
                            mean.predict_mean_image(len(depth_thw)),
                            np.broadcast_to(depth_thw[:1], depth_thw.shape),
                        )
                        for name, x_thw in zip(BASELINES, predicted, strict=True):
                            found[name].append(self._score(x_thw, depth_thw, False))
                found["rows"] += batch["index"].tolist()
                meter.update(len(found["rows"]), f"{self._title}, scored")
        self.skipped = batches.skipped
        arrays = {name: np.array(value) for name, value in found.items() if value}
        arrays["heads"] = arrays["heads"].swapaxes(0, 1)
        return {**arrays, "videos": truth.videos[arrays["rows"]]}

    def _score(self, predicted_thw, depth_thw, is_disparity: bool | None = None) -> list[float]:
        """Returns the values of `METRICS`; those in meters are NaN for disparities."""
        is_disparity = self._is_disparity if is_disparity is None else is_disparity
        plain = metrics.DepthScores(np.nan, np.nan, 0)
        if not is_disparity:
            plain = metrics.score_depth(predicted_thw, depth_thw, self._limits)
        aligned = metrics.score_aligned_depth(
            predicted_thw, depth_thw, self._limits, is_disparity=is_disparity
        )
        return [plain.abs_rel, plain.delta1, aligned.abs_rel, aligned.delta1]


def _mean_error(scores_gnz: np.ndarray, settings: Any) -> np.ndarray:
    """Returns the error [g] by which heads are selected."""
    place = METRICS.index("aligned_abs_rel" if settings.loss == DISPARITY else "abs_rel")
    return np.nanmean(scores_gnz[:, :, place], axis=1)


def _make_rows(val, chosen, trained, truth: Truth, name: str, settings: Any) -> list[Row]:
    """Makes the result rows; rows of baselines only for the evaluated encoder."""
    parts = []
    for suffix, head in chosen.items():
        details = {
            **trained.settings[head]._asdict(),
            "train_loss": float(trained.loss_g[head]),
            "diverged": bool(trained.diverged_g[head]),
        }
        parts.append((name, f"{settings.head} head{suffix}", val["heads"][head], details))
    parts += [(kind, "truth", val[kind], {}) for kind in BASELINES if kind in val]
    rows = []
    for kind, what, scores_nz, details in parts:
        for score_n, metric in zip(scores_nz.T, METRICS, strict=True):
            if np.isnan(score_n).all():
                continue
            row = weighted_rows.make_row(
                score_n,
                None,
                val["videos"],
                evaluator=Depth.name,
                name=kind,
                what=what,
                task=f"{truth.name} depth",
                metric=metric,
                names=truth.video_names,
                **details,
            )
            rows.append(row)
    return rows
