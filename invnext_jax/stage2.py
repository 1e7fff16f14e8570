"""Stage 2: latent prediction of a frozen Stage 1 target (paper section 3.3).

Student and target start as the Stage 1 encoder. The target encodes the whole clip; the student
sees it under two kinds of multi-block masks, and the predictor, with a head into the target's
space, predicts the target's tokens at the masked places.

Shape key: b batch, t frames, h w pixels, c channels, n tokens, k visible, m masked, d width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models import encoder, predictor
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import ProjectionHead, gather_tokens, scale_kernels, unit
from invnext_jax.models.pixels import clip_grid, normalize
from invnext_jax.objectives import losses, masks


class Model(nn.Module):
    """Encoder, predictor and the head into the target's space; the pool is carried along.

    No loss reaches the attention pool; the configuration keeps the optimiser off it, so that an
    exported Stage 2 encoder has the pool of Stage 1.
    """

    encoder: nn.Module
    predictor: nn.Module
    head: nn.Module
    pool: nn.Module

    def __call__(
        self, video_bthwc: jax.Array, keep_bk: jax.Array, masked_bm: jax.Array
    ) -> jax.Array:
        """Predicts the target's unit vectors at the masked places: float32 [b m d]."""
        grid = clip_grid(video_bthwc, self.encoder.patch)
        tokens_bnd = self.encoder(video_bthwc, keep_bk).tokens_bnd
        if self.is_initializing():
            self.pool(tokens_bnd)
        # The head ends in unit length and the reference normalises once more.
        return unit(self.head(self.predictor(tokens_bnd, keep_bk, masked_bm, grid)))


def make_model(config: Any) -> Model:
    """The modules of a Stage 2 run."""
    e, dtype = config.encoder, jnp.dtype(config.dtype)
    return Model(
        encoder=encoder.from_config(config),
        predictor=predictor.from_config(config),
        head=ProjectionHead(e.width, True, dtype),
        pool=AttentionPool(e.pool_width, e.pool_heads, dtype),
    )


def init_params(config: Any, model: Model, key: jax.Array) -> Any:
    """Initial parameters, boxed with their logical axes; call it inside jit or eval_shape."""
    data = config.data
    video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
    index_bn = jnp.arange(data.frames * (data.size // config.encoder.patch) ** 2)[None]
    params = model.init(key, video_bthwc, index_bn[:, :1], index_bn[:, 1:])["params"]
    return scale_kernels(params, config.init_gain, without=("patch_embed",))


def abstract_frozen(config: Any) -> Any:
    """Shapes and logical axes of the frozen target's parameters."""
    data = config.data
    video_bthwc = jnp.zeros((1, data.frames, data.size, data.size, 3))
    init = encoder.from_config(config).init
    return jax.eval_shape(init, jax.random.key(0), video_bthwc)["params"]


def init_frozen(config: Any, restored: Any) -> Any:
    """The target: the encoder of the Stage 1 checkpoint.

    Raises:
      UserError: the config names no checkpoint.
    """
    if restored is None:
        raise UserError(
            "Stage 2 starts from Stage 1: set init_from to the workdir of a Stage 1 run"
        )
    del config
    return restored["encoder"]


def warm_start(config: Any, restored: Any) -> Any:
    """Encoder, predictor and pool of Stage 1; the head into the target's space starts anew."""
    del config
    return {name: restored[name] for name in ("encoder", "predictor", "pool")}


def check_config(config: Any) -> None:
    """Checks what is particular to Stage 2.

    Raises:
      UserError: no Stage 1 run is named, or the mask needs an image teacher.
    """
    if not config.init_from:
        raise UserError(
            "Stage 2 starts from Stage 1: set init_from to the workdir of a Stage 1 run"
        )
    if config.mask.kind not in ("multi_block", "tube", "random"):
        raise UserError(
            f"mask.kind={config.mask.kind!r} needs an image teacher, which Stage 2 does not have: "
            "set it to 'multi_block', 'tube' or 'random'"
        )


def draw_masks(config: Any, batch: int, grid: tuple, key: jax.Array) -> list[masks.Mask]:
    """The masks of one step: each kind of multi-block mask, or one mask of another kind."""
    mask = config.mask
    if mask.kind == "multi_block":
        return masks.multi_blocks(key, batch, grid, mask)
    visible = masks.visible_per_frame(grid[1] * grid[2], mask.ratio)
    draw = {"tube": masks.tube, "random": masks.random}[mask.kind]
    return [draw(key, batch, grid, visible)]


def target_tokens(model: Model, frozen: Any, video_bthwc: jax.Array) -> jax.Array:
    """The frozen target's tokens of the whole clip, without class tokens: unit [b n d].

    Differs from reference: its target ran with drop path on, by oversight; ours is deterministic.
    """
    tokens_bnd = model.encoder.apply({"params": frozen}, video_bthwc).tokens_bnd
    return unit(tokens_bnd[:, model.encoder.class_tokens :])


def loss_fn(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over the mask kinds of the cosine distance to the target at the masked places.

    Args:
      config: of the run.
      model: as made by `make_model`.
      params: trained parameters.
      frozen: the target encoder's parameters.
      batch: `video` uint8 [b t h w c].
      key: random key of the step.
    """
    video_bthwc = normalize(batch["video"])
    grid = clip_grid(video_bthwc, config.encoder.patch)
    drawn = draw_masks(config, video_bthwc.shape[0], grid, jax.random.fold_in(key, 0))
    droppath_key = jax.random.fold_in(key, 1)
    return loss_of_masks(model, params, frozen, video_bthwc, drawn, droppath_key)


def loss_of_masks(
    model: Model,
    params: Any,
    frozen: Any,
    video_bthwc: jax.Array,
    drawn: list[masks.Mask],
    droppath_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss as a pure function of the masks; no drop path without its key."""
    target_bnd = target_tokens(model, frozen, video_bthwc)
    terms = {}
    for i, (keep_bk, masked_bm) in enumerate(drawn):
        rngs = None if droppath_key is None else {"droppath": jax.random.fold_in(droppath_key, i)}
        predicted_bmd = model.apply({"params": params}, video_bthwc, keep_bk, masked_bm, rngs=rngs)
        target_bmd = gather_tokens(target_bnd, masked_bm)
        terms[f"loss/predict_{i}"] = losses.cosine_loss(predicted_bmd, target_bmd)
    return sum(terms.values()), terms


def diagnostics(
    config: Any, model: Model, params: Any, frozen: Any, batch: Any, key: jax.Array
) -> dict[str, jax.Array]:
    """What the loss hides.

    Returns:
      `encoder_grad/predict_<i>`: gradient norm at the encoder of each mask kind's term; spread
      and effective rank of targets and predictions; `target_position_share`: how much of the
      targets' variance their position alone explains; `position_loss`: the loss, of one mask
      kind, of a prediction that knows nothing but the position.
    """
    video_bthwc = normalize(batch["video"])
    grid = clip_grid(video_bthwc, config.encoder.patch)
    drawn = draw_masks(config, video_bthwc.shape[0], grid, jax.random.fold_in(key, 0))

    def terms_of(encoder_params):
        full = {**params, "encoder": encoder_params}
        terms = loss_of_masks(model, full, frozen, video_bthwc, drawn)[1]
        return {name.replace("loss/", "encoder_grad/"): term for name, term in terms.items()}

    metrics = losses.gradient_norms(terms_of, params["encoder"])
    target_bnd = target_tokens(model, frozen, video_bthwc)
    predicted_bmd = model.apply({"params": params}, video_bthwc, *drawn[0])
    for name, x in (("target", target_bnd), ("prediction", predicted_bmd)):
        metrics[f"{name}_std"] = losses.feature_std(x)
        metrics[f"{name}_rank"] = losses.effective_rank(x)
    metrics["target_position_share"] = losses.position_share(target_bnd)
    position_1nd = unit(jnp.mean(target_bnd, axis=0, keepdims=True))
    metrics["position_loss"] = losses.cosine_loss(position_1nd, target_bnd)
    return metrics
