"""Stage 2: prediction of a Stage 1 encoder's latents (paper section 3.3).

The student and the target are initialized from the Stage 1 encoder. The target encodes the whole
clip. The student encodes the visible patches of two kinds of multi-block masks. The predictor and a
head predict the target's tokens at the masked positions. The paper's ablations use a different
target (a moving average of the student, or the image teacher), a different mask, or additional
losses.

Shape key: b batch, t frames, h w pixels, c channels, n tokens, s patches of a frame, k visible,
m masked, d width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.errors import UserError
from invnext_jax.models import decoder, encoder, predictor, teachers
from invnext_jax.models.dot_general import quantization
from invnext_jax.models.gather import gather_tokens
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import ProjectionHead, l2_normalize
from invnext_jax.models.patches import clip_grid, normalize
from invnext_jax.models.sharding import replicate_tokens, shard_tokens
from invnext_jax.objectives import losses, masks
from invnext_jax.planning import flops as flops_lib
from invnext_jax.stages import image_teacher, initialization
from invnext_jax.stages.masked_modeling import (
    Loss,
    LossInputs,
    MaskedModel,
    MaskKeys,
    MaskSample,
    pixel_loss,
    run_features,
)
from invnext_jax.stages.masked_stage import MaskedModelingStage
from invnext_jax.stages.pixel_sampling import visible_grid
from invnext_jax.stages.stage import Visualization
from invnext_jax.training.state import EmaTargets
from invnext_jax.training.step import NO_EMA_TARGETS

TARGETS = ("frozen", "momentum", "image")


class Stage2Features(NamedTuple):
    """Float32 model outputs for the losses; outputs that no loss needs are None."""

    predicted_bmd: jax.Array | None
    aligned_bkd: jax.Array | None
    latents_bmd: jax.Array | None


class Stage2Model(MaskedModel):
    """Encoder and attention pool, and the predictor, heads and decoder of the active losses.

    No loss depends on the pool, and the config excludes it from the optimizer, so an exported
    Stage 2 encoder has the pool of Stage 1.
    """

    encoder: nn.Module
    pool: nn.Module
    predictor: nn.Module | None = None
    head: nn.Module | None = None
    align_visible: nn.Module | None = None
    decoder: nn.Module | None = None

    def __call__(self, video_bthwc: jax.Array, sample: MaskSample) -> None:
        """Runs all parts, to initialize their parameters."""
        self.pool(self.encoder(video_bthwc, sample.keep_bk).tokens_bnd)
        latents_bmd = self.features(video_bthwc, sample.keep_bk, sample.masked_bm).latents_bmd
        self.init_decoder(sample, latents_bmd)

    def features(
        self,
        video_bthwc: jax.Array,
        keep_bk: jax.Array,
        masked_bm: jax.Array,
        chosen_bm: jax.Array | None = None,
        seen_bk: jax.Array | None = None,
    ) -> Stage2Features:
        """Computes the student's features at predicted and visible positions, as unit vectors."""
        grid = clip_grid(video_bthwc, self.encoder.patch)
        tokens_bnd = self.encoder(video_bthwc, keep_bk).tokens_bnd
        predicted_bmd = aligned_bkd = latents_bmd = None
        if self.predictor is not None:
            latents_bmd = self.predictor(tokens_bnd, keep_bk, masked_bm, grid, chosen_bm, seen_bk)
        if self.head is not None:
            # The head's output already has unit length. The reference also normalizes it twice.
            predicted_bmd = l2_normalize(replicate_tokens(self.head(shard_tokens(latents_bmd))))
        if self.align_visible is not None:
            aligned_bkd = self.align_visible(tokens_bnd[:, self.encoder.class_tokens :])
        return Stage2Features(predicted_bmd, aligned_bkd, latents_bmd)


def predict_loss(inputs: LossInputs) -> jax.Array:
    """Computes the cosine loss between predictions and target tokens at the same positions."""
    target_bmd = gather_tokens(inputs.target, inputs.sample.predicted_bm)
    return losses.cosine_loss(inputs.features.predicted_bmd, target_bmd)


def align_visible_loss(inputs: LossInputs) -> jax.Array:
    """Computes the cosine loss between the student's visible tokens and the target's tokens."""
    target_bkd = gather_tokens(inputs.target, inputs.sample.keep_bk)
    return losses.cosine_loss(inputs.features.aligned_bkd, target_bkd)


def _make_head(config: Any) -> ProjectionHead:
    """Makes a head that projects to the feature space of the target."""
    return ProjectionHead(_target_width(config), True, jnp.dtype(config.dtype))


def _target_width(config: Any) -> int:
    return config.teacher.width if config.target.kind == "image" else config.encoder.width


class Stage2(MaskedModelingStage):
    """Prediction of the latents of a Stage 1 encoder."""

    title = "Stage 2"
    losses = {
        "predict": Loss(("predictor", "head"), predict_loss),
        "align_visible": Loss(("align_visible",), align_visible_loss),
        "pixels": Loss(("predictor", "decoder"), pixel_loss),
    }
    makers = {
        "predictor": predictor.from_config,
        "head": _make_head,
        "align_visible": _make_head,
        "decoder": decoder.from_config,
    }

    def make_model(self, config: Any) -> Stage2Model:
        """See `Stage.make_model`."""
        e = config.encoder
        return Stage2Model(
            encoder=encoder.from_config(config),
            pool=AttentionPool(e.pool_width, e.pool_heads, jnp.dtype(config.dtype)),
            **self.make_modules(config),
        )

    def needs_teacher(self, config: Any) -> bool:
        """See `Stage.needs_teacher`."""
        return config.target.kind == "image" or super().needs_teacher(config)

    def abstract_frozen(self, config: Any) -> Any:
        """See `Stage.abstract_frozen`; contains the target, if frozen, and the image teacher."""
        frozen, data = {}, config.data
        if config.target.kind == "frozen":
            video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
            init = encoder.from_config(config).init
            frozen["target"] = jax.eval_shape(init, jax.random.key(0), video_bthwc)["params"]
        return frozen | super().abstract_frozen(config)

    def init_frozen(self, config: Any, restored: Mapping[str, Any] | None) -> Any:
        """See `Stage.init_frozen`; the Stage 1 encoder becomes the target."""
        initialization.require_encoder(config, restored)
        frozen = {"target": restored["encoder"]} if config.target.kind == "frozen" else {}
        return frozen | super().init_frozen(config, restored)

    def warm_start(self, config: Any, restored: Mapping[str, Any] | None) -> dict[str, Any]:
        """See `Stage.warm_start`; selects encoder, pool, predictor and decoder, but no heads."""
        initialization.require_encoder(config, restored)
        heads = ("head", "align_visible")
        groups = [name for name in self.param_groups(config) if name not in heads]
        return initialization.select_params(config, restored, groups)

    def ema_targets(self, config: Any) -> tuple[EmaTargets, float]:
        """See `Stage.ema_targets`; the momentum target averages the encoder."""
        if config.target.kind != "momentum":
            return NO_EMA_TARGETS
        return {"target": "encoder"}, config.target.momentum

    def check_config(self, config: Any) -> None:
        """See `Stage.check_config`."""
        if not config.init_from:
            raise UserError(initialization.NO_STAGE1)
        if config.init_parts and "encoder" not in config.init_parts:
            raise UserError(f"init_parts={config.init_parts} must include 'encoder' from Stage 1")
        target = config.target
        if target.kind not in TARGETS:
            known = ", ".join(map(repr, TARGETS))
            raise UserError(f"target.kind={target.kind!r} must be one of {known}")
        if not 0 <= target.momentum <= 1:
            raise UserError(f"target.momentum={target.momentum} must be between 0 and 1")
        super().check_config(config)

    def mask_keys(self, key: jax.Array, number: int) -> MaskKeys:
        """See `MaskedModelingStage.mask_keys`."""

        def fold_in(stream: int) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(key, stream), number)

        timestep, noise = jax.random.split(fold_in(2))
        return MaskKeys(choice=fold_in(4), timestep=timestep, noise=noise, droppath=fold_in(1))

    def compute_target(
        self,
        config: Any,
        model: Stage2Model,
        frozen: Any,
        teacher_output: teachers.TeacherOutput | None,
        video_bthwc: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `MaskedModelingStage.compute_target`.

        Differs from reference: its target uses drop path by mistake. This target is deterministic
        unless `config.target.drop_path` is True and `key` is given.

        Returns:
          Unit vectors [b n d], the target's tokens for the whole clip without class tokens.
        """
        if config.target.kind == "image":  # the deepest tap, the input of the teacher's last layer
            t = video_bthwc.shape[1]
            return rearrange(teacher_output.taps_lbnd[-1], "(b t) s d -> b (t s) d", t=t)
        drops = config.target.drop_path and key is not None
        rngs = {"droppath": jax.random.fold_in(key, 3)} if drops else None
        with quantization(config.quantize_frozen):
            tokens_bnd = model.encoder.apply(
                {"params": frozen["target"]}, video_bthwc, rngs=rngs
            ).tokens_bnd
        return l2_normalize(tokens_bnd[:, model.encoder.class_tokens :])

    def diagnostics(
        self, config: Any, model: Stage2Model, params: Any, frozen: Any, batch: Any, key: jax.Array
    ) -> dict[str, jax.Array]:
        """See `Stage.diagnostics`.

        Returns:
          Encoder gradient norms, standard deviations and effective ranks of targets and
          predictions, `target_position_share` (fraction of the variance explained by the position),
          and `position_loss` and `clip_loss` (losses of the mean target of each position or clip).
        """
        video_bthwc = normalize(batch["video"])
        teacher_output, samples = self.apply_teacher(config, frozen, video_bthwc, key, batch)
        target_bnd = self.compute_target(config, model, frozen, teacher_output, video_bthwc)
        metrics = self.encoder_gradient_norms(
            config, model, params, target_bnd, video_bthwc, samples
        )
        vectors = {"target": target_bnd}
        if model.head is not None:
            features = run_features(model, params, video_bthwc, samples[0])
            vectors["prediction"] = features.predicted_bmd
        for name, x in vectors.items():
            metrics[f"{name}_std"] = losses.feature_std(x)
            metrics[f"{name}_rank"] = losses.effective_rank(x)
        metrics["target_position_share"] = losses.position_share(target_bnd)
        for axis, name in enumerate(("position_loss", "clip_loss")):
            constant = l2_normalize(jnp.mean(target_bnd, axis=axis, keepdims=True))
            metrics[name] = losses.cosine_loss(constant, target_bnd)
        return metrics

    def count_flops(
        self, config: Any, *, dense_windows: bool = False
    ) -> dict[str, flops_lib.FlopCount]:
        """See `Stage.count_flops`."""
        tokens, e = flops_lib.token_lengths(config), config.encoder
        counts, active = {}, self.active_losses(config)
        from_image = config.target.kind == "image"
        counts["target"] = (
            flops_lib.count_teacher(config)
            if from_image
            else flops_lib.count_target_encoder(config, tokens)
        )
        if self.needs_teacher(config) and not from_image:
            counts["teacher"] = flops_lib.count_teacher(config)
        counts["encoder"] = flops_lib.count_encoder(config, tokens)
        counts |= self.count_pixel_flops(config, tokens, dense_windows=dense_windows)
        heads = counts["heads"] = flops_lib.FlopCount(config.dtype)
        for visible, predicted in zip(tokens.visible, tokens.predicted, strict=True):
            if "predict" in active:
                heads.add_projection_head(predicted, config.predictor.width, _target_width(config))
            if "align_visible" in active:
                heads.add_projection_head(visible, e.width, _target_width(config))
        return counts

    def visualize(
        self, config: Any, params: Any, video_bthwc: np.ndarray, seed: int = 0
    ) -> list[Visualization]:
        """See `Stage.visualize`; shows the masks."""
        del params
        frozen = {}
        if masks.needs_attention(config.mask):
            frozen["teacher"] = image_teacher.read_teacher(config)
        keeps = self.sample_visible(config, frozen, video_bthwc, jax.random.key(seed))
        grid = clip_grid(video_bthwc, config.encoder.patch)
        strips = []
        for i, keep_bk in enumerate(keeps):
            blocks = config.mask.blocks[i] if config.mask.kind == "multi_block" else None
            how = f"{blocks[0]} blocks of {blocks[1]:.0%}" if blocks else config.mask.kind
            caption = f"Gray patches are masked ({how}); their latents are predicted."
            visible = visible_grid(keep_bk, grid)
            strips.append(Visualization(f"mask {i + 1}", caption, video_bthwc, visible, True))
        return strips
