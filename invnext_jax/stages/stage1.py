"""Stage 1: semantic-guided pixel reconstruction (paper section 3.2).

A frozen image teacher sees every frame. Its attention chooses the visible patches; the encoder's
visible tokens align with the teacher's; the predictor completes the masked latents and a
conditional diffusion decoder turns each into the pixels of its patch. What a loss of weight 0
alone would use is neither built nor computed.

Shape key: b batch, t frames, h w pixels, c channels, s patches of a frame, k visible tokens,
m masked tokens, n masked patches of all clips (times the noise draws), p pixels of a patch,
d width, l taps.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.errors import UserError
from invnext_jax.models import decoder, encoder, predictor, teachers
from invnext_jax.models.heads import AlignHeads, AttentionPool
from invnext_jax.models.layers import ProjectionHead
from invnext_jax.models.patches import Grid, clip_grid, normalize
from invnext_jax.objectives import losses, masks
from invnext_jax.planning.flops import step_flops as step_flops  # one of what a stage gives
from invnext_jax.stages import image_teacher, initialization
from invnext_jax.stages.masked_modeling import (
    DecodingModel,
    Draws,
    complete,
    groups_of_terms,
    pixel_terms,
    run_features,
)
from invnext_jax.stages.masked_modeling import (
    init_params as init_params,  # one of what a stage gives
)

LOSS_TERMS = ("align_tokens", "align_pooled", "pixels")


class Features(NamedTuple):
    """What the losses compare, float32; None where the loss is off."""

    aligned_lbkd: jax.Array | None
    pooled_bd: jax.Array | None
    latents_bmd: jax.Array | None


class Model(DecodingModel):
    """Encoder and attention pool; for the losses that are on, predictor, decoder and heads.

    The pool is exported with the encoder, so it is there even if no loss reaches it.
    """

    encoder: nn.Module
    pool: nn.Module
    predictor: nn.Module | None = None
    decoder: nn.Module | None = None
    align: nn.Module | None = None
    align_pooled: nn.Module | None = None

    def __call__(self, video_bthwc: jax.Array, draws: Draws) -> None:
        """Runs every part, for initialisation."""
        latents_bmd = self.features(video_bthwc, draws.keep_bk, draws.masked_bm).latents_bmd
        self.init_decoder(draws, latents_bmd)

    def features(
        self,
        video_bthwc: jax.Array,
        keep_bk: jax.Array,
        masked_bm: jax.Array,
        chosen_bm: jax.Array | None = None,
    ) -> Features:
        """Aligned features of the visible tokens, latents of the masked ones (or of some)."""
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
            latents_bmd = self.predictor(tokens_bnd, keep_bk, masked_bm, grid, chosen_bm)
        return Features(aligned_lbkd, pooled_bd, latents_bmd)


def groups(config: Any) -> tuple[str, ...]:
    """Top-level groups of the parameter tree: what the losses that are on use, and the pool."""
    of_term = {
        "align_tokens": ("align",),
        "align_pooled": ("align_pooled",),
        "pixels": ("predictor", "decoder"),
    }
    return groups_of_terms(config, of_term)


def needs_teacher(config: Any) -> bool:
    """Whether a loss or the mask looks at the image teacher."""
    aligns = config.loss["align_tokens"] or config.loss["align_pooled"]
    return bool(aligns) or masks.needs_attention(config.mask)


def make_model(config: Any) -> Model:
    """The modules of a Stage 1 run; the last `teacher.taps` layers of the encoder are aligned."""
    e, width, dtype = config.encoder, config.teacher.width, jnp.dtype(config.dtype)
    side, built = e.size // e.patch, groups(config)
    makers = {
        "predictor": lambda: predictor.from_config(config),
        "decoder": lambda: decoder.from_config(config),
        "align": lambda: AlignHeads(width, (e.frames, side, side), e.class_tokens, dtype),
        "align_pooled": lambda: ProjectionHead(width, True, dtype),
    }
    taps = range(e.depth - config.teacher.taps + 1, e.depth + 1) if "align" in built else ()
    return Model(
        encoder=encoder.from_config(config, taps),
        pool=AttentionPool(e.pool_width, e.pool_heads, dtype),
        **{name: make() for name, make in makers.items() if name in built},
    )


def abstract_frozen(config: Any) -> Any:
    """Shapes and logical axes of the frozen teacher's parameters, if it is needed."""
    return {"teacher": image_teacher.abstract_teacher(config)} if needs_teacher(config) else {}


def init_frozen(config: Any, restored: Any) -> Any:
    """The teacher's parameters from the file that the config names, if it is needed."""
    del restored
    return {"teacher": image_teacher.read_teacher(config)} if needs_teacher(config) else {}


def warm_start(config: Any, restored: Any) -> dict[str, Any]:
    """What the run `config.init_from` has of our groups, and layers of a text model."""
    return initialization.choose_start(config, restored, groups(config))


def following(config: Any) -> tuple[dict[str, str], float]:
    """Nothing follows the parameters."""
    del config
    return {}, 1.0


def untrained(config: Any) -> tuple[str, ...]:
    """The pool, if no loss reaches it: weight decay alone would wear it away."""
    return () if config.loss["align_pooled"] else ("pool",)


def check_config(config: Any) -> None:
    """Checks what is particular to Stage 1.

    Raises:
      UserError: sizes that do not fit each other, or an unknown kind.
    """
    masks.check_settings(config.mask, (config.data.size // config.encoder.patch) ** 2)
    if config.loss.pixels:
        predictor.check_config(config)
        initialization.check_text(config)
        decoder.check_config(config)
    if config.loss.align_tokens and not 0 < config.teacher.taps <= config.encoder.depth:
        raise UserError(
            f"teacher.taps={config.teacher.taps} must lie in 1 to encoder.depth="
            f"{config.encoder.depth}"
        )
    if needs_teacher(config):
        image_teacher.check_teacher(config)


def draw(
    config: Any, batch: int, grid: Grid, key: jax.Array, attention_bts: jax.Array | None = None
) -> Draws:
    """Draws the mask, which of its places are predicted, and for the diffusion decoder their noise.

    Args:
      config: of the run.
      batch: number of clips.
      grid: frames, rows and columns of the clips.
      key: random key.
      attention_bts: the teacher's attention to each patch, for a semantic mask.
    """
    mask_key, t_key, noise_key, choice_key = (jax.random.fold_in(key, i) for i in (0, 1, 2, 4))
    mask = masks.sample_masks(mask_key, batch, grid, config.mask, attention_bts)[0]
    return complete(config, mask, t_key, noise_key, choice_key)


def see_and_draw(
    config: Any, frozen: Any, video_bthwc: jax.Array, key: jax.Array
) -> tuple[teachers.TeacherOutput | None, Draws]:
    """What the teacher says about every frame, if it is needed, and what is drawn."""
    seen = attention_bts = None
    if needs_teacher(config):
        seen, attention_bts = image_teacher.see_clips(config, frozen["teacher"], video_bthwc)
    grid = clip_grid(video_bthwc, config.encoder.patch)
    return seen, draw(config, video_bthwc.shape[0], grid, key, attention_bts)


def loss_fn(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the alignment losses and the diffusion loss of one batch.

    Args:
      config: of the run.
      model: as made by `make_model`.
      params: trained parameters.
      frozen: "teacher": the image teacher's parameters.
      batch: `video` uint8 [b t h w c].
      key: random key of the step.

    Returns:
      The loss, and every unweighted term as a metric.
    """
    video_bthwc = normalize(batch["video"])
    seen, draws = see_and_draw(config, frozen, video_bthwc, key)
    rngs = {"droppath": jax.random.fold_in(key, 3)}
    terms = loss_terms(model, params, seen, video_bthwc, draws, rngs)
    return weigh(config, terms), {f"loss/{name}": value for name, value in terms.items()}


def weigh(config: Any, terms: dict[str, jax.Array]) -> jax.Array:
    """The weighted sum of the loss terms that are on."""
    return sum(config.loss[name] * terms[name] for name in LOSS_TERMS if name in terms)


def loss_terms(
    model: Model,
    params: Any,
    seen: teachers.TeacherOutput | None,
    video_bthwc: jax.Array,
    draws: Draws,
    rngs: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The loss terms as a pure function of all that is drawn; no drop path without `rngs`.

    Returns:
      Those of `LOSS_TERMS` that the model has modules for, and the parts of the pixel loss.
    """
    t = video_bthwc.shape[1]
    features = run_features(model, params, video_bthwc, draws, rngs)
    terms = {}
    if features.aligned_lbkd is not None:
        taps_lbnd = rearrange(seen.taps_lbnd, "l (b t) s d -> l b (t s) d", t=t)
        target_lbkd = jnp.take_along_axis(taps_lbnd, draws.keep_bk[None, :, :, None], axis=2)
        terms["align_tokens"] = losses.cosine_loss(features.aligned_lbkd, target_lbkd)
    if features.pooled_bd is not None:
        # The mean over the frames is not brought back to unit length, as in the reference.
        pooled_bd = jnp.mean(rearrange(seen.pooled_bd, "(b t) d -> b t d", t=t), axis=1)
        terms["align_pooled"] = losses.cosine_loss(features.pooled_bd, pooled_bd)
    if features.latents_bmd is not None:
        terms |= pixel_terms(model, params, features.latents_bmd, video_bthwc, draws)
    return terms


def diagnostics(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> dict[str, jax.Array]:
    """What the losses hide.

    Returns:
      `encoder_grad/<term>`: gradient norm at the encoder of each weighted term;
      `conditioning_gap`: noise error given another clip's latents minus that given its own (a
      decoder that ignores its latents has none); spread and rank of the latents.
    """
    video_bthwc = normalize(batch["video"])
    seen, draws = see_and_draw(config, frozen, video_bthwc, key)

    def weighted(encoder_params):
        terms = loss_terms(model, {**params, "encoder": encoder_params}, seen, video_bthwc, draws)
        shown = [name for name in LOSS_TERMS if name in terms]
        return {f"encoder_grad/{name}": config.loss[name] * terms[name] for name in shown}

    metrics = losses.gradient_norms(weighted, params["encoder"])
    latents_bmd = run_features(model, params, video_bthwc, draws).latents_bmd
    if latents_bmd is None:
        return metrics
    own, other = (
        pixel_terms(model, params, z_bmd, video_bthwc, draws)
        for z_bmd in (latents_bmd, jnp.roll(latents_bmd, 1, axis=0))
    )
    part = "noise" if "noise" in own else "pixels"
    metrics["conditioning_gap"] = other[part] - own[part]
    metrics["latent_std"] = losses.feature_std(latents_bmd)
    metrics["latent_rank"] = losses.effective_rank(latents_bmd)
    return metrics
