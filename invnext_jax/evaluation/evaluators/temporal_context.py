"""How much other frames help to predict masked patches: a property of the videos and the masks.

Two predictors of the same size are trained for the same number of steps. One sees the visible
patches of all frames, the other only those of the frame of the patch that it predicts. If the
difference between their losses is small, a model that ignores motion can solve the prediction task.
Other frames also show what is hidden in a frame, so the loss of the mean target of each clip, which
contains the appearance but no places, bounds what motion can contribute.

Shape key: b clips, t frames, h w pixels, c channels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.feature_store.clips_in_memory import LabeledVideos
from invnext_jax.evaluation.feature_store.extraction import local_mesh, pad_for_devices
from invnext_jax.evaluation.head_training import HeadTraining, select_head
from invnext_jax.evaluation.heads import frame_context
from invnext_jax.evaluation.heads.frame_context import TARGETS, Context
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.metrics.intervals import mean_standard_error
from invnext_jax.evaluation.video_scores import VideoScores
from invnext_jax.models.patches import clip_grid, normalize
from invnext_jax.objectives import masks
from invnext_jax.training import mesh as mesh_lib

INPUTS = {"own frame": False, "all frames": True}  # whether the predictor sees all frames
CLIP_MEAN = "mean of the clip"
GAIN = "gain from other frames"


class TemporalContext:
    """Losses of a predictor that sees all frames, of one that sees one frame, and of the clip mean.

    The predictors have the sizes of the checkpoint's config and random initial parameters. The
    evaluator returns no rows for encoders of other projects.
    """

    name = "temporal_context"
    is_baseline = False
    needs_labels = False
    uses_predictor = True
    options = ("temporal_context",)

    def check_config(self, config: Any) -> None:
        """Checks the targets, the masks and the training."""
        settings, name = config.temporal_context, "config.temporal_context"
        head_training.check_training(_training_settings(settings), name)
        unknown = [target for target in settings.targets if target not in TARGETS]
        if unknown or not settings.targets:
            raise UserError(
                f"{name}.targets={tuple(settings.targets)} must be one or more of "
                f"{', '.join(map(repr, TARGETS))}"
            )
        masks.check_settings(_mask_settings(settings), positions=1)

    def evaluate(self, inputs: EvalInputs, config: Any) -> list[Row]:
        """Trains the predictors and measures their losses on the held-out videos."""
        loaded = inputs.encoder.loaded
        if loaded is None or "predictor" not in loaded.config:
            inputs.notes.add(f"{self.name}: {inputs.encoder.name} has no predictor, skipped")
            return []
        rows, index_b = [], inputs.dataset.videos("val").index_b
        for target in config.temporal_context.targets:
            loss = {}
            for what, all_frames in INPUTS.items():
                loss[what] = _measure(inputs, config, target, all_frames=all_frames)
                rows.append(self._make_row(inputs, what, target, loss[what], index_b))
            loss_b = _measure_clip_mean(inputs, config, target)
            rows.append(self._make_row(inputs, CLIP_MEAN, target, loss_b, index_b))
            gain_b = loss["own frame"] - loss["all frames"]
            rows.append(self._make_row(inputs, GAIN, target, gain_b, index_b))
        return rows

    def _make_row(self, inputs: EvalInputs, what, target, score_b, index_b) -> Row:
        return Row(
            evaluator=self.name,
            name=inputs.name,
            input=what,
            task=target,
            metric="prediction_gain" if what == GAIN else "prediction_loss",
            value=float(np.mean(score_b)),
            standard_error=mean_standard_error(score_b),
            n=len(score_b),
            scores=VideoScores(index_b, score_b),
        )


def _training_settings(settings: Any) -> Any:
    rates = {"learning_rates": (settings.learning_rate,), "weight_decays": (settings.weight_decay,)}
    return ml_collections.ConfigDict({**settings, **rates})


def _mask_settings(settings: Any) -> Any:
    fixed = {"kind": "multi_block", "ratio": 0.5}  # `masks.check_settings` reads the ratio
    fixed["max_temporal_keep"] = 1.0  # one frame says nothing about frames without visible patches
    return ml_collections.ConfigDict({**settings.mask, **fixed})


def _measure(inputs: EvalInputs, config: Any, target: str, *, all_frames: bool) -> np.ndarray:
    """Trains a predictor; returns the loss of each held-out video, float32 [b]."""
    settings, loaded = config.temporal_context, inputs.encoder.loaded
    train = inputs.dataset.videos("train")
    run_config = loaded.config.copy_and_resolve_references()
    width = loaded.encoder.width if target == "latents" else loaded.encoder.patch**2 * 3
    module = frame_context.make_predictor(run_config, width, all_frames=all_frames)
    batch_size = _batch_size(inputs, config)
    name = f"{target} from {'all frames' if all_frames else 'one frame'}"
    make_contexts = _context_maker(inputs, config, target)

    def predict(params, context):
        return module.apply({"params": params}, context)

    def init_params(key):
        batch = {"video": jnp.zeros((1, *train.video_bthwc.shape[1:]), jnp.uint8)}
        contexts = make_contexts(inputs.encoder.params, batch, key)
        return mesh_lib.unbox(module.init(key, contexts[0])["params"])

    trained = head_training.train_heads(
        init_params,
        lambda params, contexts, _: jnp.mean(_mean_losses(predict, params, contexts, target)),
        lambda step: _sample_batch(train, batch_size, config.seed, step),
        head_training.make_grid((settings.learning_rate,), (settings.weight_decay,)),
        HeadTraining.for_epochs(settings, len(train.video_bthwc) / batch_size, config.seed),
        name=name,
        saved=inputs.state_file(
            f"temporal-context-{target}-{'all' if all_frames else 'own'}",
            settings.to_dict(),
            inputs.encoder.predictor_key,
        ),
        prepare=make_contexts,
        frozen=inputs.encoder.params,
    )
    params = select_head(trained.params, 0)
    return _measure_losses(inputs, config, target, predict, params)


def _measure_clip_mean(inputs: EvalInputs, config: Any, target: str) -> np.ndarray:
    """Returns the losses of the mean target of each held-out video and mask, float32 [b]."""

    def predict(params, context):
        del params
        return jnp.mean(context.target_btmp, axis=(1, 2), keepdims=True)

    return _measure_losses(inputs, config, target, predict, None)


def _batch_size(inputs: EvalInputs, config: Any) -> int:
    return min(config.temporal_context.batch_size, len(inputs.dataset.videos("train").video_bthwc))


def _mean_losses(predict, params: Any, contexts: list[Context], target: str) -> jax.Array:
    """Returns the loss of `predict(params, context)` of each clip, averaged over the masks."""
    losses = [frame_context.prediction_losses(predict(params, x), x, target) for x in contexts]
    return sum(losses) / len(losses)


def _context_maker(inputs: EvalInputs, config: Any, target: str):
    """Returns a function (frozen, batch, key) that samples masks and encodes their contexts."""
    loaded, settings = inputs.encoder.loaded, config.temporal_context

    def make_contexts(frozen, batch, key):
        video_bthwc = normalize(batch["video"])
        grid = clip_grid(video_bthwc, loaded.encoder.patch)
        found = masks.sample_masks(key, len(video_bthwc), grid, _mask_settings(settings))
        params = frozen["encoder"]
        return [
            frame_context.encode_context(loaded.encoder, params, video_bthwc, mask, target)
            for mask in found
        ]

    return make_contexts


def _measure_losses(inputs: EvalInputs, config: Any, target: str, predict, params) -> np.ndarray:
    """Returns the losses of `predict(params, context)` for all held-out videos, float32 [b]."""
    val = inputs.dataset.videos("val")
    make_contexts = _context_maker(inputs, config, target)

    @jax.jit
    def run(frozen, params, batch, key):
        return _mean_losses(predict, params, make_contexts(frozen, batch, key), target)

    mesh, found = local_mesh(), []
    key = jax.random.key(config.seed)
    size = _batch_size(inputs, config)
    for first in range(0, len(val.video_bthwc), size):
        part = val.video_bthwc[first : first + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        batch = {"video": pad_for_devices(padded, mesh)}
        loss_b = run(inputs.encoder.params, params, batch, jax.random.fold_in(key, first))
        found.append(np.asarray(loss_b)[: len(part)])
    return np.concatenate(found)


def _sample_batch(
    videos: LabeledVideos, batch_size: int, seed: int, step: int
) -> dict[str, np.ndarray]:
    rows = np.random.default_rng((seed, step)).choice(len(videos.video_bthwc), batch_size, False)
    return {"video": videos.video_bthwc[rows]}
