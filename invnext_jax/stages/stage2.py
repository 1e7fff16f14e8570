"""Stage 2: latent prediction of a Stage 1 target (paper section 3.3).

The student starts as the Stage 1 encoder, and so does the target, which encodes the whole clip. The
student sees it under two kinds of multi-block masks, and the predictor, with a head into the
target's space, predicts the target's tokens at the masked places. The paper's ablations change the
target (one that follows the student, or the image teacher), the mask, and add losses.

Shape key: b batch, t frames, h w pixels, c channels, n tokens (in decoding: patches of all clips),
s patches of a frame, k visible, m masked, d width, p pixels of a patch.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.errors import UserError
from invnext_jax.models import decoder, encoder, predictor, teachers
from invnext_jax.models.dot_general import quantization
from invnext_jax.models.gather import gather_tokens
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import ProjectionHead, l2_normalize
from invnext_jax.models.patches import Grid, clip_grid, normalize
from invnext_jax.models.sharding import replicate_tokens, shard_tokens
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

LOSS_TERMS = ("predict", "align_visible", "pixels")
TARGETS = ("frozen", "momentum", "image")


class Features(NamedTuple):
    """What the losses compare, float32; None where the loss is off."""

    predicted_bmd: jax.Array | None
    aligned_bkd: jax.Array | None
    latents_bmd: jax.Array | None


class Model(DecodingModel):
    """Encoder and attention pool; for the losses that are on, predictor, heads and decoder.

    No loss reaches the pool; the configuration keeps the optimiser off it, so that an exported
    Stage 2 encoder has the pool of Stage 1.
    """

    encoder: nn.Module
    pool: nn.Module
    predictor: nn.Module | None = None
    head: nn.Module | None = None
    align_visible: nn.Module | None = None
    decoder: nn.Module | None = None

    def __call__(self, video_bthwc: jax.Array, draws: Draws) -> None:
        """Runs every part, for initialisation."""
        self.pool(self.encoder(video_bthwc, draws.keep_bk).tokens_bnd)
        latents_bmd = self.features(video_bthwc, draws.keep_bk, draws.masked_bm).latents_bmd
        self.init_decoder(draws, latents_bmd)

    def features(
        self,
        video_bthwc: jax.Array,
        keep_bk: jax.Array,
        masked_bm: jax.Array,
        chosen_bm: jax.Array | None = None,
    ) -> Features:
        """Unit vectors in the target's space at predicted and visible places, and latents."""
        grid = clip_grid(video_bthwc, self.encoder.patch)
        tokens_bnd = self.encoder(video_bthwc, keep_bk).tokens_bnd
        predicted_bmd = aligned_bkd = latents_bmd = None
        if self.predictor is not None:
            latents_bmd = self.predictor(tokens_bnd, keep_bk, masked_bm, grid, chosen_bm)
        if self.head is not None:
            # The head ends in unit length and the reference normalises once more.
            predicted_bmd = l2_normalize(replicate_tokens(self.head(shard_tokens(latents_bmd))))
        if self.align_visible is not None:
            aligned_bkd = self.align_visible(tokens_bnd[:, self.encoder.class_tokens :])
        return Features(predicted_bmd, aligned_bkd, latents_bmd)


def groups(config: Any) -> tuple[str, ...]:
    """Top-level groups of the parameter tree: what the losses that are on use, and the pool."""
    of_term = {
        "predict": ("predictor", "head"),
        "align_visible": ("align_visible",),
        "pixels": ("predictor", "decoder"),
    }
    return groups_of_terms(config, of_term)


def needs_teacher(config: Any) -> bool:
    """Whether the target or the mask is the image teacher's."""
    return config.target.kind == "image" or masks.needs_attention(config.mask)


def make_model(config: Any) -> Model:
    """The modules of a Stage 2 run."""
    e, dtype = config.encoder, jnp.dtype(config.dtype)
    width = config.teacher.width if config.target.kind == "image" else e.width
    built = groups(config)
    makers = {
        "predictor": lambda: predictor.from_config(config),
        "head": lambda: ProjectionHead(width, True, dtype),
        "align_visible": lambda: ProjectionHead(width, True, dtype),
        "decoder": lambda: decoder.from_config(config),
    }
    return Model(
        encoder=encoder.from_config(config),
        pool=AttentionPool(e.pool_width, e.pool_heads, dtype),
        **{name: make() for name, make in makers.items() if name in built},
    )


def abstract_frozen(config: Any) -> Any:
    """Shapes and logical axes of the frozen target's and the image teacher's parameters."""
    frozen, data = {}, config.data
    if config.target.kind == "frozen":
        video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
        init = encoder.from_config(config).init
        frozen["target"] = jax.eval_shape(init, jax.random.key(0), video_bthwc)["params"]
    if needs_teacher(config):
        frozen["teacher"] = image_teacher.abstract_teacher(config)
    return frozen


def init_frozen(config: Any, restored: Any) -> Any:
    """The target, if it is frozen: the Stage 1 encoder; and the image teacher, if it is needed.

    Raises:
      UserError: the config names no Stage 1 run.
    """
    _need_encoder(config, restored)
    frozen = {}
    if config.target.kind == "frozen":
        frozen["target"] = restored["encoder"]
    if needs_teacher(config):
        frozen["teacher"] = image_teacher.read_teacher(config)
    return frozen


def warm_start(config: Any, restored: Any) -> dict[str, Any]:
    """Encoder, pool, predictor and decoder of Stage 1; the heads start anew."""
    _need_encoder(config, restored)
    takes = [name for name in groups(config) if name not in ("head", "align_visible")]
    return initialization.choose_start(config, restored, takes)


def _need_encoder(config: Any, restored: Any) -> None:
    if restored is None:
        raise UserError(
            "Stage 2 starts from Stage 1: set init_from to the workdir of a Stage 1 run"
        )
    if "encoder" not in restored:
        raise UserError(
            f"init_from={config.init_from} holds no encoder, only {', '.join(restored)}: name the "
            "workdir of a Stage 1 run"
        )


def following(config: Any) -> tuple[dict[str, str], float]:
    """What follows the parameters: the momentum target, a copy of the encoder."""
    copies = {"target": "encoder"} if config.target.kind == "momentum" else {}
    return copies, config.target.momentum


def untrained(config: Any) -> tuple[str, ...]:
    """Nothing but what `config.optimizer.frozen` names."""
    del config
    return ()


def check_config(config: Any) -> None:
    """Checks what is particular to Stage 2.

    Raises:
      UserError: no Stage 1 run is named, or an unknown kind.
    """
    if not config.init_from:
        raise UserError(
            "Stage 2 starts from Stage 1: set init_from to the workdir of a Stage 1 run"
        )
    if config.init_parts and "encoder" not in config.init_parts:
        raise UserError(
            f"init_parts={config.init_parts} must name 'encoder': Stage 2 starts from Stage 1"
        )
    masks.check_settings(config.mask, (config.data.size // config.encoder.patch) ** 2)
    target = config.target
    if target.kind not in TARGETS:
        raise UserError(f"target.kind={target.kind!r} is none of {', '.join(map(repr, TARGETS))}")
    if not 0 <= target.momentum <= 1:
        raise UserError(f"target.momentum={target.momentum} must lie between 0 and 1")
    if "predictor" in groups(config):
        predictor.check_config(config)
        initialization.check_text(config)
    if config.loss.pixels:
        decoder.check_config(config)
    if needs_teacher(config):
        image_teacher.check_teacher(config)


def draw(
    config: Any, batch: int, grid: Grid, key: jax.Array, attention_bts: jax.Array | None = None
) -> list[Draws]:
    """The masks of one step, which places are predicted, and noise for the diffusion decoder.

    Args:
      config: of the run.
      batch: number of clips.
      grid: frames, rows and columns of the clips.
      key: random key.
      attention_bts: the image teacher's attention to each patch, for a semantic mask.
    """
    drawn = masks.sample_masks(jax.random.fold_in(key, 0), batch, grid, config.mask, attention_bts)
    noise_key, choice_key = (jax.random.fold_in(key, i) for i in (2, 4))
    return [
        complete(
            config,
            mask,
            *jax.random.split(jax.random.fold_in(noise_key, i)),
            jax.random.fold_in(choice_key, i),
        )
        for i, mask in enumerate(drawn)
    ]


def see_and_draw(
    config: Any, frozen: Any, video_bthwc: jax.Array, key: jax.Array
) -> tuple[teachers.TeacherOutput | None, list[Draws]]:
    """What the image teacher says about every frame, if it is needed, and what is drawn."""
    seen = attention_bts = None
    if needs_teacher(config):
        seen, attention_bts = image_teacher.see_clips(config, frozen["teacher"], video_bthwc)
    grid = clip_grid(video_bthwc, config.encoder.patch)
    return seen, draw(config, video_bthwc.shape[0], grid, key, attention_bts)


def target_tokens(
    config: Any,
    model: Model,
    frozen: Any,
    seen: teachers.TeacherOutput | None,
    video_bthwc: jax.Array,
    droppath_key: jax.Array | None = None,
) -> jax.Array:
    """The target's tokens of the whole clip, without class tokens: unit [b n d].

    Differs from reference: its target ran with drop path on, by oversight; ours is deterministic
    unless `config.target.drop_path` says otherwise and a key is given.
    """
    if config.target.kind == "image":  # the input of the teacher's last layer: the deepest tap
        return rearrange(seen.taps_lbnd[-1], "(b t) s d -> b (t s) d", t=video_bthwc.shape[1])
    drops = config.target.drop_path and droppath_key is not None
    rngs = {"droppath": droppath_key} if drops else None
    with quantization(config.quantize_frozen):
        tokens_bnd = model.encoder.apply(
            {"params": frozen["target"]}, video_bthwc, rngs=rngs
        ).tokens_bnd
    return l2_normalize(tokens_bnd[:, model.encoder.class_tokens :])


def loss_fn(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the losses of one batch: by default the distance to the target.

    Args:
      config: of the run.
      model: as made by `make_model`.
      params: trained parameters.
      frozen: "target": the target encoder's parameters; "teacher": the image teacher's; as needed.
      batch: `video` uint8 [b t h w c].
      key: random key of the step.

    Returns:
      The loss, and every unweighted term as a metric.
    """
    video_bthwc = normalize(batch["video"])
    seen, drawn = see_and_draw(config, frozen, video_bthwc, key)
    target_key = jax.random.fold_in(key, 3)
    target_bnd = target_tokens(config, model, frozen, seen, video_bthwc, target_key)
    terms = loss_terms(model, params, target_bnd, video_bthwc, drawn, jax.random.fold_in(key, 1))
    return weigh(config, terms), {f"loss/{name}": value for name, value in terms.items()}


def weigh(config: Any, terms: dict[str, jax.Array]) -> jax.Array:
    """The weighted sum, over the kinds of masks, of the loss terms that are on."""
    weights = {name: config.loss[name.rpartition("_")[0]] for name in terms if _is_loss(name)}
    return sum(weight * terms[name] for name, weight in weights.items())


def _is_loss(name: str) -> bool:
    """Whether a term is none of the parts of the pixel loss."""
    return name.rpartition("_")[0] in LOSS_TERMS


def loss_terms(
    model: Model,
    params: Any,
    target_bnd: jax.Array,
    video_bthwc: jax.Array,
    drawn: list[Draws],
    droppath_key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The loss terms as a pure function of all that is drawn; no drop path without its key.

    Returns:
      `<term>_<i>` for mask kind i: those of `LOSS_TERMS` that the model has modules for, and the
      parts of the pixel loss.
    """
    terms = {}
    for i, draws in enumerate(drawn):
        rngs = None if droppath_key is None else {"droppath": jax.random.fold_in(droppath_key, i)}
        features = run_features(model, params, video_bthwc, draws, rngs)
        if features.predicted_bmd is not None:
            target_bmd = gather_tokens(target_bnd, draws.predicted_bm)
            terms[f"predict_{i}"] = losses.cosine_loss(features.predicted_bmd, target_bmd)
        if features.aligned_bkd is not None:
            target_bkd = gather_tokens(target_bnd, draws.keep_bk)
            terms[f"align_visible_{i}"] = losses.cosine_loss(features.aligned_bkd, target_bkd)
        if model.decoder is not None:
            found = pixel_terms(model, params, features.latents_bmd, video_bthwc, draws)
            terms |= {f"{name}_{i}": value for name, value in found.items()}
    return terms


def diagnostics(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> dict[str, jax.Array]:
    """What the loss hides.

    Returns:
      `encoder_grad/<term>_<i>`: gradient norm at the encoder of each mask kind's weighted terms;
      spread and effective rank of targets and predictions; `target_position_share`: how much of
      the targets' variance their position alone explains; `position_loss`: the loss, of one mask
      kind, of a prediction that knows nothing but the position.
    """
    video_bthwc = normalize(batch["video"])
    seen, drawn = see_and_draw(config, frozen, video_bthwc, key)
    target_bnd = target_tokens(config, model, frozen, seen, video_bthwc)

    def weighted(encoder_params):
        full = {**params, "encoder": encoder_params}
        terms = loss_terms(model, full, target_bnd, video_bthwc, drawn)
        terms = {name: term for name, term in terms.items() if _is_loss(name)}
        return {f"encoder_grad/{n}": weigh(config, {n: term}) for n, term in terms.items()}

    metrics = losses.gradient_norms(weighted, params["encoder"])
    shown = {"target": target_bnd}
    if model.head is not None:
        shown["prediction"] = run_features(model, params, video_bthwc, drawn[0]).predicted_bmd
    for name, x in shown.items():
        metrics[f"{name}_std"] = losses.feature_std(x)
        metrics[f"{name}_rank"] = losses.effective_rank(x)
    metrics["target_position_share"] = losses.position_share(target_bnd)
    position_1nd = l2_normalize(jnp.mean(target_bnd, axis=0, keepdims=True))
    metrics["position_loss"] = losses.cosine_loss(position_1nd, target_bnd)
    return metrics
