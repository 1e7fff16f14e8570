"""Stage 1: semantic-guided pixel reconstruction (paper section 3.2).

A frozen image teacher sees every frame. Its attention chooses the visible patches; the encoder's
visible tokens align with the teacher's; the predictor completes the masked latents and a
conditional diffusion decoder turns each into the pixels of its patch.

Shape key: b batch, t frames, h w pixels, c channels, s patches of a frame, k visible tokens,
m masked tokens, n masked patches of all clips (times the noise draws), p pixels of a patch,
d width, l taps.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from einops import rearrange, repeat

from invnext_jax.errors import UserError
from invnext_jax.models import decoder, encoder, predictor, teachers
from invnext_jax.models.heads import AlignHeads, AttentionPool
from invnext_jax.models.layers import ProjectionHead, scale_kernels
from invnext_jax.models.pixels import Grid, clip_grid, normalize, patch_targets
from invnext_jax.objectives import diffusion, losses, masks
from invnext_jax.weights import assets
from invnext_jax.weights.export import read_export
from invnext_jax.weights.match import match_tree

LOSS_TERMS = ("align_tokens", "align_pooled", "pixels")
SCHEDULE = diffusion.cosine_schedule(1000)


class Draws(NamedTuple):
    """What is drawn anew in every step: the mask, and noise for each masked patch."""

    keep_bk: jax.Array
    masked_bm: jax.Array
    t_n: jax.Array
    noise_np: jax.Array


class Features(NamedTuple):
    """What the losses compare; float32."""

    aligned_lbkd: jax.Array
    pooled_bd: jax.Array
    latents_bmd: jax.Array


class Model(nn.Module):
    """Encoder, predictor, decoder and alignment heads."""

    encoder: nn.Module
    predictor: nn.Module
    decoder: nn.Module
    align: nn.Module
    pool: nn.Module
    align_pooled: nn.Module

    def __call__(self, video_bthwc: jax.Array, draws: Draws) -> jax.Array:
        """Runs every part, for initialisation."""
        latents_bmd = self.features(video_bthwc, draws.keep_bk, draws.masked_bm).latents_bmd
        latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
        return self.decode(draws.noise_np, draws.t_n, latents_nd)

    def features(
        self, video_bthwc: jax.Array, keep_bk: jax.Array, masked_bm: jax.Array
    ) -> Features:
        """Aligned features of the visible tokens and latents of the masked ones."""
        grid = clip_grid(video_bthwc, self.encoder.patch)
        tokens_bnd, taps_lbnd = self.encoder(video_bthwc, keep_bk)
        return Features(
            self.align(taps_lbnd, keep_bk, grid),
            self.align_pooled(self.pool(tokens_bnd)),
            self.predictor(tokens_bnd, keep_bk, masked_bm, grid),
        )

    def decode(self, noised_np: jax.Array, t_n: jax.Array, latents_nd: jax.Array) -> jax.Array:
        """Model output of each patch: [n, 2p] of the diffusion decoder, else pixels [n p]."""
        if isinstance(self.decoder, decoder.DiffusionDecoder):
            return self.decoder(noised_np, t_n, latents_nd)
        return self.decoder(latents_nd)


def make_model(config: Any) -> Model:
    """The modules of a Stage 1 run; the last `teacher.taps` layers of the encoder are aligned."""
    e, taps, dtype = config.encoder, config.teacher.taps, jnp.dtype(config.dtype)
    side = e.size // e.patch
    return Model(
        encoder=encoder.from_config(config, range(e.depth - taps + 1, e.depth + 1)),
        predictor=predictor.from_config(config),
        decoder=decoder.from_config(config),
        align=AlignHeads(config.teacher.width, (e.frames, side, side), e.class_tokens, dtype),
        pool=AttentionPool(e.pool_width, e.pool_heads, dtype),
        align_pooled=ProjectionHead(config.teacher.width, True, dtype),
    )


def init_params(config: Any, model: Model, key: jax.Array) -> Any:
    """Initial parameters, boxed with their logical axes; call it inside jit or eval_shape."""
    data, patch = config.data, config.encoder.patch
    video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
    index_bn = jnp.arange(data.frames * (data.size // patch) ** 2)[None]
    n = index_bn.size - 1
    t_n, noise_np = jnp.zeros((n,), jnp.int32), jnp.zeros((n, 3 * patch**2))
    draws = Draws(index_bn[:, :1], index_bn[:, 1:], t_n, noise_np)
    params = model.init(key, video_bthwc, draws)["params"]
    return scale_kernels(params, config.init_gain, without=("patch_embed", "decoder"))


def abstract_frozen(config: Any) -> Any:
    """Shapes and logical axes of the frozen teacher's parameters."""
    images = jnp.zeros((1, config.teacher.size, config.teacher.size, 3))
    init = teachers.from_config(config).init
    return jax.eval_shape(init, jax.random.key(0), images)["params"]


def init_frozen(config: Any, restored: Any) -> Any:
    """The teacher's parameters from the file that the config names."""
    del restored
    path = assets.resolve(config.teacher.weights)
    parts, _ = read_export(path)
    return match_tree(parts["teacher"], nn.unbox(abstract_frozen(config)), f"teacher {path}")


def warm_start(config: Any, restored: Any) -> Any:
    """Everything that a Stage 1 checkpoint holds, if `config.init_from` names one."""
    del config
    return restored or {}


def check_config(config: Any) -> None:
    """Checks what is particular to Stage 1.

    Raises:
      UserError: sizes that do not fit each other, or an unknown kind.
    """
    d, t, patch_values = config.decoder, config.teacher, 3 * config.encoder.patch**2
    if d.kind not in ("diffusion", "linear", "mlp"):
        raise UserError(f"decoder.kind={d.kind!r} is none of 'diffusion', 'linear', 'mlp'")
    if t.kind not in teachers.KINDS:
        raise UserError(f"teacher.kind={t.kind!r} is none of {', '.join(teachers.KINDS)}")
    if not t.weights:
        raise UserError("teacher.weights is empty: name the .safetensors file of the image teacher")
    sides = t.size // t.patch, config.data.size // config.encoder.patch
    if sides[0] != sides[1]:
        raise UserError(
            f"teacher.size // teacher.patch = {sides[0]} must equal the {sides[1]} patches a side "
            "of data.size // encoder.patch: set teacher.size"
        )
    if not 0 < t.taps <= config.encoder.depth:
        raise UserError(
            f"teacher.taps={t.taps} must lie in 1 to encoder.depth={config.encoder.depth}"
        )
    if min(teachers.tapped_layers(t.depth, t.taps, t.tap_interval)) < 0:
        raise UserError(f"teacher.tap_interval={t.tap_interval} reaches below the first layer")
    if d.kind == "diffusion" and d.width < patch_values:
        logging.warning(
            "decoder.width=%d is narrower than the %d values of a patch: noise cannot pass it",
            d.width,
            patch_values,
        )


def draw_mask(config: Any, attention_bts: jax.Array, grid: Grid, key: jax.Array) -> masks.Mask:
    """The mask of the configured kind; see `objectives.masks`."""
    mask, (batch, _, s) = config.mask, attention_bts.shape
    visible = masks.visible_per_frame(s, mask.ratio)
    if mask.kind == "semantic":
        return masks.semantic(key, attention_bts, visible)
    if mask.kind == "multi_block":
        return masks.multi_blocks(key, batch, grid, mask)[0]
    draw = {"tube": masks.tube, "random": masks.random}[mask.kind]
    return draw(key, batch, grid, visible)


def draw(config: Any, attention_bts: jax.Array, grid: Grid, key: jax.Array) -> Draws:
    """Draws the mask, and timesteps and noise for each masked patch.

    Args:
      config: of the run.
      attention_bts: the teacher's attention to each patch.
      grid: frames, rows and columns of the clips.
      key: random key.
    """
    mask_key, t_key, noise_key = (jax.random.fold_in(key, i) for i in range(3))
    keep_bk, masked_bm = draw_mask(config, attention_bts, grid, mask_key)
    n = masked_bm.size * config.decoder.noise_draws
    t_n = jax.random.randint(t_key, (n,), 0, len(SCHEDULE.betas))
    noise_np = jax.random.normal(noise_key, (n, 3 * config.encoder.patch**2))
    return Draws(keep_bk, masked_bm, t_n, noise_np)


def see(config: Any, frozen: Any, video_bthwc: jax.Array) -> teachers.TeacherOutput:
    """What the frozen teacher says about every frame (b*t images)."""
    images = teachers.preprocess(video_bthwc, config.teacher.size, config.teacher.kind)
    return teachers.from_config(config).apply({"params": frozen}, images)


def loss_fn(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the alignment losses and the diffusion loss of one batch.

    Args:
      config: of the run.
      model: as made by `make_model`.
      params: trained parameters.
      frozen: the teacher's parameters.
      batch: `video` uint8 [b t h w c].
      key: random key of the step.

    Returns:
      The loss, and every unweighted term as a metric.
    """
    video_bthwc = normalize(batch["video"])
    seen, draws = _see_and_draw(config, frozen, video_bthwc, key)
    rngs = {"droppath": jax.random.fold_in(key, 3)}
    terms = loss_terms(model, params, seen, video_bthwc, draws, rngs)
    return weigh(config, terms), {f"loss/{name}": value for name, value in terms.items()}


def _see_and_draw(config, frozen, video_bthwc, key):
    seen = see(config, frozen, video_bthwc)
    attention_bts = rearrange(seen.attention_bn, "(b t) s -> b t s", t=video_bthwc.shape[1])
    grid = clip_grid(video_bthwc, config.encoder.patch)
    return seen, draw(config, attention_bts, grid, key)


def weigh(config: Any, terms: dict[str, jax.Array]) -> jax.Array:
    """The weighted sum of the loss terms."""
    return sum(config.loss[name] * terms[name] for name in LOSS_TERMS)


def loss_terms(
    model: Model,
    params: Any,
    seen: teachers.TeacherOutput,
    video_bthwc: jax.Array,
    draws: Draws,
    rngs: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The loss terms as a pure function of all that is drawn; no drop path without `rngs`.

    Returns:
      The terms of `LOSS_TERMS`, and the parts of the pixel loss.
    """
    t = video_bthwc.shape[1]
    features = model.apply(
        {"params": params},
        video_bthwc,
        draws.keep_bk,
        draws.masked_bm,
        rngs=rngs,
        method="features",
    )
    taps_lbnd = rearrange(seen.taps_lbnd, "l (b t) s d -> l b (t s) d", t=t)
    target_lbkd = jnp.take_along_axis(taps_lbnd, draws.keep_bk[None, :, :, None], axis=2)
    # The mean over the frames is not brought back to unit length, as in the reference.
    pooled_bd = jnp.mean(rearrange(seen.pooled_bd, "(b t) d -> b t d", t=t), axis=1)
    return {
        "align_tokens": losses.cosine_loss(features.aligned_lbkd, target_lbkd),
        "align_pooled": losses.cosine_loss(features.pooled_bd, pooled_bd),
        **pixel_terms(model, params, features.latents_bmd, video_bthwc, draws),
    }


def pixel_terms(
    model: Model, params: Any, latents_bmd: jax.Array, video_bthwc: jax.Array, draws: Draws
) -> dict[str, jax.Array]:
    """The loss of the masked patches' pixels given their latents.

    Returns:
      `pixels`, and for diffusion its parts `noise` (squared error) and `bound` (bits a channel).
    """
    start_np = patch_targets(video_bthwc, draws.masked_bm, model.encoder.patch)
    latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
    if not isinstance(model.decoder, decoder.DiffusionDecoder):
        empty = draws.noise_np, draws.t_n
        decoded_np = model.apply({"params": params}, *empty, latents_nd, method="decode")
        return {"pixels": jnp.mean((decoded_np - start_np) ** 2)}
    repeats = draws.t_n.size // start_np.shape[0]
    start_np, latents_nd = (repeat(x, "n p -> (r n) p", r=repeats) for x in (start_np, latents_nd))
    noised_np = diffusion.add_noise(SCHEDULE, start_np, draws.t_n, draws.noise_np)
    output = model.apply({"params": params}, noised_np, draws.t_n, latents_nd, method="decode")
    terms = diffusion.loss_terms(SCHEDULE, output, start_np, noised_np, draws.t_n, draws.noise_np)
    noise, bound = jnp.mean(terms.squared_error), jnp.mean(terms.bound)
    return {"pixels": noise + bound, "noise": noise, "bound": bound}


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
    seen, draws = _see_and_draw(config, frozen, video_bthwc, key)

    def weighted(encoder_params):
        terms = loss_terms(model, {**params, "encoder": encoder_params}, seen, video_bthwc, draws)
        return {f"encoder_grad/{name}": config.loss[name] * terms[name] for name in LOSS_TERMS}

    metrics = losses.gradient_norms(weighted, params["encoder"])
    latents_bmd = model.apply(
        {"params": params}, video_bthwc, draws.keep_bk, draws.masked_bm, method="features"
    ).latents_bmd
    own, other = (
        pixel_terms(model, params, z_bmd, video_bthwc, draws)
        for z_bmd in (latents_bmd, jnp.roll(latents_bmd, 1, axis=0))
    )
    part = "noise" if "noise" in own else "pixels"
    metrics["conditioning_gap"] = other[part] - own[part]
    metrics["latent_std"] = losses.feature_std(latents_bmd)
    metrics["latent_rank"] = losses.effective_rank(latents_bmd)
    return metrics
