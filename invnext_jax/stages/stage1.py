"""Stage 1: semantic-guided pixel reconstruction (paper section 3.2).

A frozen image teacher encodes every frame. Its attention selects the visible patches, and the
encoder's visible tokens are aligned with the teacher's tokens. The predictor predicts the latents
of masked patches, and a conditional diffusion decoder maps each latent to the pixels of its patch.
A loss with weight 0 is not computed, and its modules are not built.

Shape key: b batch, t frames, h w pixels, c channels, s patches of a frame, k visible tokens,
m masked tokens, n tokens of the encoder, d width, l taps, f frames that the teacher encodes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.errors import UserError
from invnext_jax.models import decoder, encoder, predictor
from invnext_jax.models.heads import AlignHeads, AttentionPool
from invnext_jax.models.layers import ProjectionHead
from invnext_jax.models.patches import clip_grid, normalize
from invnext_jax.objectives import losses, masks, teacher_frames
from invnext_jax.planning import flops as flops_lib
from invnext_jax.stages import initialization, pixel_sampling
from invnext_jax.stages.masked_modeling import (
    Loss,
    LossInputs,
    MaskedModel,
    MaskKeys,
    MaskSample,
    pixel_loss,
    pixel_terms,
    run_features,
)
from invnext_jax.stages.masked_stage import MaskedModelingStage
from invnext_jax.stages.stage import Visualization


class Stage1Features(NamedTuple):
    """Float32 model outputs for the losses; outputs that no loss needs are None."""

    aligned_lbkd: jax.Array | None
    pooled_bd: jax.Array | None
    latents_bmd: jax.Array | None


class Stage1Model(MaskedModel):
    """Encoder and attention pool, and the predictor, decoder and heads of the active losses."""

    encoder: nn.Module
    pool: nn.Module
    predictor: nn.Module | None = None
    decoder: nn.Module | None = None
    align: nn.Module | None = None
    align_pooled: nn.Module | None = None

    def __call__(self, video_bthwc: jax.Array, sample: MaskSample) -> None:
        """Runs all parts, to initialize their parameters."""
        latents_bmd = self.features(video_bthwc, sample.keep_bk, sample.masked_bm).latents_bmd
        self.init_decoder(sample, latents_bmd)

    def features(
        self,
        video_bthwc: jax.Array,
        keep_bk: jax.Array,
        masked_bm: jax.Array,
        chosen_bm: jax.Array | None = None,
        seen_bk: jax.Array | None = None,
    ) -> Stage1Features:
        """Computes the aligned features of visible tokens and the latents of masked tokens."""
        grid = clip_grid(video_bthwc, self.encoder.patch)
        tokens_bnd, taps_lbnd = self.encoder(video_bthwc, keep_bk)
        aligned_lbkd = pooled_bd = latents_bmd = None
        if self.align is not None:
            aligned_lbkd = self.align(taps_lbnd, keep_bk, grid)
        if self.align_pooled is not None:
            pooled_bd = self.align_pooled(self.pool(tokens_bnd))
        elif self.is_initializing():
            self.pool(tokens_bnd)
        if self.predictor is not None:
            latents_bmd = self.predictor(tokens_bnd, keep_bk, masked_bm, grid, chosen_bm, seen_bk)
        return Stage1Features(aligned_lbkd, pooled_bd, latents_bmd)


def align_tokens_loss(inputs: LossInputs) -> jax.Array:
    """Computes the cosine loss between visible and teacher tokens, over the tapped layers.

    If the teacher encodes only some frames, the tokens of the other frames have the weight 0.
    """
    (b, t), index_bk = inputs.video_bthwc.shape[:2], inputs.sample.keep_bk
    output, weight_1bk = inputs.target, None
    if output.frames_bf is not None:
        s = output.taps_lbnd.shape[2]
        index_bk, weight_bk = teacher_frames.locate_tokens(output.frames_bf, index_bk, t, s)
        weight_1bk = weight_bk[None]
    taps_lbnd = rearrange(output.taps_lbnd, "l (b f) s d -> l b (f s) d", b=b)
    target_lbkd = jnp.take_along_axis(taps_lbnd, index_bk[None, :, :, None], axis=2)
    return losses.cosine_loss(inputs.features.aligned_lbkd, target_lbkd, weight_1bk)


def align_pooled_loss(inputs: LossInputs) -> jax.Array:
    """Computes the cosine loss between the pooled feature and the teacher's average over frames.

    The average is over the frames that the teacher encodes. As in the reference, it is not
    normalized to unit length.
    """
    b = inputs.video_bthwc.shape[0]
    pooled_bd = jnp.mean(rearrange(inputs.target.pooled_bd, "(b f) d -> b f d", b=b), axis=1)
    return losses.cosine_loss(inputs.features.pooled_bd, pooled_bd)


class Stage1(MaskedModelingStage):
    """Semantic-guided pixel reconstruction."""

    title = "Stage 1"
    losses = {
        "align_tokens": Loss(("align",), align_tokens_loss, needs_teacher=True),
        "align_pooled": Loss(("align_pooled",), align_pooled_loss, needs_teacher=True),
        "pixels": Loss(("predictor", "decoder"), pixel_loss),
    }
    makers = {
        "predictor": predictor.from_config,
        "decoder": decoder.from_config,
        "align": lambda config: _make_align_heads(config),
        "align_pooled": lambda config: ProjectionHead(
            config.teacher.width, True, jnp.dtype(config.dtype)
        ),
    }
    numbered = False

    def make_model(self, config: Any) -> Stage1Model:
        """See `Stage.make_model`; the last `teacher.taps` layers of the encoder are aligned."""
        e, modules = config.encoder, self.make_modules(config)
        taps = range(e.depth - config.teacher.taps + 1, e.depth + 1) if "align" in modules else ()
        return Stage1Model(
            encoder=encoder.from_config(config, taps),
            pool=AttentionPool(e.pool_width, e.pool_heads, jnp.dtype(config.dtype)),
            **modules,
        )

    def warm_start(self, config: Any, restored: Mapping[str, Any] | None) -> dict[str, Any]:
        """See `Stage.warm_start`; selects all restored groups and the layers of a text model."""
        return initialization.select_params(config, restored, self.param_groups(config))

    def frozen_groups(self, config: Any) -> tuple[str, ...]:
        """See `Stage.frozen_groups`.

        The pool is frozen if no loss depends on it, because weight decay would shrink it.
        """
        return () if "align_pooled" in self.param_groups(config) else ("pool",)

    def check_config(self, config: Any) -> None:
        """See `Stage.check_config`."""
        taps, depth = config.teacher.taps, config.encoder.depth
        if "align_tokens" in self.active_losses(config) and not 0 < taps <= depth:
            raise UserError(f"teacher.taps={taps} must be between 1 and encoder.depth={depth}")
        super().check_config(config)

    def mask_keys(self, key: jax.Array, number: int) -> MaskKeys:
        """See `MaskedModelingStage.mask_keys`; there is one mask."""
        del number
        fold_in = jax.random.fold_in
        return MaskKeys(
            choice=fold_in(key, 4),
            timestep=fold_in(key, 1),
            noise=fold_in(key, 2),
            droppath=fold_in(key, 3),
        )

    def draw_masks(self, *args: Any, **kwargs: Any) -> list[masks.Mask]:
        """See `MaskedModelingStage.draw_masks`; returns only the first of several masks."""
        return super().draw_masks(*args, **kwargs)[:1]

    def compute_target(self, config, model, frozen, teacher_output, video_bthwc, key=None) -> Any:
        """See `MaskedModelingStage.compute_target`; returns the output of the image teacher."""
        del config, model, frozen, video_bthwc, key
        return teacher_output

    def diagnostics(
        self, config: Any, model: Stage1Model, params: Any, frozen: Any, batch: Any, key: jax.Array
    ) -> dict[str, jax.Array]:
        """See `Stage.diagnostics`.

        Returns:
          The encoder gradient norms. If there is a predictor, also the standard deviation and the
          effective rank of the latents. If there is a decoder, also `conditioning_gap`: the noise
          error with the latents of a different clip, minus the error with the clip's own latents.
          It is 0 if the decoder ignores the latents.
        """
        video_bthwc = normalize(batch["video"])
        target, samples = self.apply_teacher(config, frozen, video_bthwc, key, batch)
        metrics = self.encoder_gradient_norms(config, model, params, target, video_bthwc, samples)
        (sample,) = samples
        latents_bmd = run_features(model, params, video_bthwc, sample).latents_bmd
        if latents_bmd is None:
            return metrics
        if model.decoder is not None:
            own, other = (
                pixel_terms(model, params, z_bmd, video_bthwc, sample)
                for z_bmd in (latents_bmd, jnp.roll(latents_bmd, 1, axis=0))
            )
            part = "noise" if "noise" in own else "pixels"
            metrics["conditioning_gap"] = other[part] - own[part]
        metrics["latent_std"] = losses.feature_std(latents_bmd)
        metrics["latent_rank"] = losses.effective_rank(latents_bmd)
        return metrics

    def count_flops(
        self, config: Any, *, dense_windows: bool = False
    ) -> dict[str, flops_lib.FlopCount]:
        """See `Stage.count_flops`."""
        tokens, e = flops_lib.token_lengths(config, most_masks=1), config.encoder
        counts, active = {}, self.active_losses(config)
        if self.needs_teacher(config):
            counts["teacher"] = flops_lib.count_teacher(config)
        counts["encoder"] = flops_lib.count_encoder(config, tokens)
        counts |= self.count_pixel_flops(config, tokens, dense_windows=dense_windows)
        (visible,) = tokens.visible
        heads = counts["heads"] = flops_lib.FlopCount(config.dtype)
        if "align_tokens" in active:
            n = config.teacher.taps * visible
            heads.add_projection_head(n, e.width, config.teacher.width)
        if "align_pooled" in active:
            heads.add_attention_pool(visible + tokens.class_tokens, e.width, e.pool_width)
            heads.add_projection_head(1, e.pool_width, config.teacher.width)
        return counts

    def visualize(
        self, config: Any, params: Any, video_bthwc: np.ndarray, seed: int = 0
    ) -> list[Visualization]:
        """See `Stage.visualize`; shows the mask and patches sampled by the pixel decoder."""
        frozen = self.init_frozen(config, None)
        made = pixel_sampling.reconstruct(self, config, params, frozen, video_bthwc, seed)
        by_attention = masks.needs_attention(config.mask)
        how = "in proportion to the image teacher's attention" if by_attention else config.mask.kind
        strips = [
            Visualization(
                "mask",
                f"Gray patches are masked. The visible patches are sampled {how}.",
                video_bthwc,
                made.visible_btyx,
                True,
            )
        ]
        for title, caption, video_bthwc in (
            (
                "reconstruction",
                "Masked patches sampled from noise by the pixel decoder, each independently; "
                "patches outlined in white were visible and are copied. No pixel of a masked "
                "patch is used.",
                made.own_bthwc,
            ),
            (
                "mean of several samples",
                f"The mean of {pixel_sampling.DRAWS} such samples, which shows what the latents "
                "determine. Where it is blurred, the samples differ.",
                made.mean_bthwc,
            ),
            (
                "with another clip's latents",
                "The first sample's noise, decoded from the next clip's latents. If this looks "
                "like the reconstruction, the decoder ignores its latents.",
                made.other_bthwc,
            ),
        ):
            if video_bthwc is not None:
                strips.append(Visualization(title, caption, video_bthwc, made.visible_btyx, False))
        return strips


def _make_align_heads(config: Any) -> AlignHeads:
    e, side = config.encoder, config.encoder.size // config.encoder.patch
    return AlignHeads(
        config.teacher.width, (e.frames, side, side), e.class_tokens, jnp.dtype(config.dtype)
    )
