"""Encodes the first frames of a clip and predicts the latents of later time slots.

The encoder sees the first slots of a time grid, and the checkpoint's predictor predicts the latents
of later slots of the same grid, as for masked patches during training. Neither of them uses pixels
of later frames.

Shape key: b clips, t time slots, h w pixels, c channels, n patches of a slot, d width, k visible
tokens, m masked tokens.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation.frozen_encoder import PREDICTOR_SECTIONS, FrozenEncoder, FrozenOutput
from invnext_jax.evaluation.pretrained import LoadedEncoder
from invnext_jax.models.patches import clip_grid, normalize
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.weights import match

EPS = 1e-6


class TimeGrid(NamedTuple):
    """Time slots of the context and of the predictions.

    Attributes:
      context: number of frames that the encoder sees.
      slots: number of frames of the grid, of which the first ones are the context.
      predicted: indices of the predicted frames; empty without a predictor.
    """

    context: int
    slots: int
    predicted: range


def make_grid(settings: Any, encoder: FrozenEncoder, frames: int) -> TimeGrid:
    """Returns the time grid for an encoder.

    Args:
      settings: `config.anticipation`.
      encoder: the encoder.
      frames: number of frames of a clip; all are the context if `settings.context_frames` is 0.

    Raises:
      UserError: the context cannot be divided into time slots, or the grid has no slot that can be
        predicted.
    """
    context = settings.context_frames or frames
    if context % encoder.tubelet:
        raise UserError(
            f"config.anticipation.context_frames={context} must be divisible by the encoder's time "
            f"slot of {encoder.tubelet} frames"
        )
    loaded = encoder.loaded
    if loaded is None:
        return TimeGrid(context, context, range(0))
    if loaded.predictor is None:
        slots = settings.grid_frames or loaded.config.get("data", {}).get("frames", encoder.frames)
        return TimeGrid(context, max(context, slots), range(0))
    slots, first = settings.grid_frames or loaded.predictor.frames, context + settings.gap_frames
    last = first + settings.predicted_frames if settings.predicted_frames else slots
    if not first < last <= slots:
        raise UserError(
            f"the time grid has {slots} frames, but config.anticipation.context_frames={context}, "
            f"gap_frames={settings.gap_frames} and predicted_frames={settings.predicted_frames} "
            f"need {max(last, first + 1)}: lower them, or raise grid_frames"
        )
    return TimeGrid(context, slots, range(first, last))


def make_future_encoder(
    encoder: FrozenEncoder, grid: TimeGrid, *, unit_tokens: bool = True
) -> FrozenEncoder:
    """Makes an encoder that returns the tokens of the context and then the predicted tokens.

    Its inputs are clips with at least `grid.context` frames; later frames are ignored. If the
    encoder has a predictor, the output contains `len(grid.predicted)` additional time slots.

    Args:
      encoder: encoder of the context.
      grid: see `make_grid`.
      unit_tokens: whether all tokens are scaled to the norm sqrt(width). The loss of Stage 2
        compares predictions and targets at this scale.

    Raises:
      UserError: the shapes of the predictor's parameters do not match its config.
    """
    loaded = encoder.loaded
    predicts = len(grid.predicted) > 0
    width = encoder.width
    params, record = encoder.params, {"kind": "future_latents", "encoder": encoder.record}
    record |= {"context": grid.context, "slots": grid.slots, "unit_tokens": unit_tokens}
    if predicts:
        params = {"encoder": encoder.params["encoder"], **loaded.predictor.params}
        width = max(width, _check_predictor(loaded, encoder))
        config = run_metadata.config_to_json(loaded.config)
        record["predicted"] = list(grid.predicted)
        record["predictor"] = {name: config.get(name) for name in PREDICTOR_SECTIONS}

    def forward(params, video_bthwc, layers):
        if layers:
            raise ValueError(f"{layers=} must be empty: predictions have no layers")
        video_bthwc = video_bthwc[:, : grid.context]
        if loaded is None:
            tokens = [encoder.forward(params, video_bthwc, ()).tokens_btnd]
        else:
            tokens = encode_and_predict(loaded, params, normalize(video_bthwc), grid)
        if unit_tokens:
            tokens = [x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS) for x in tokens]
        # Narrower tokens are padded with zeros.
        tokens = [jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[-1]),)) for x in tokens]
        tokens_btnd = jnp.concatenate(tokens, axis=1)
        return FrozenOutput(tokens_btnd, None, tokens_btnd[None][:0], None)

    return dataclasses.replace(
        encoder,
        width=width,
        class_tokens=False,
        pool_width=0,
        params=params,
        record=record,
        forward=forward,
        loaded=None,
    )


def encode_and_predict(
    loaded: LoadedEncoder, params: Any, video_bthwc: jax.Array, grid: TimeGrid
) -> list[jax.Array]:
    """Encodes a context and predicts the slots `grid.predicted`.

    The predictor receives mask tokens for all slots after the context, as in training, where
    visible and masked patches fill the grid. Only predictions of `grid.predicted` are returned.

    Args:
      loaded: modules of the encoder and of the predictor.
      params: their parameters: "encoder" and, for predictions, "predictor" and optionally "head".
      video_bthwc: normalized float clips that consist of the context.
      grid: see `make_grid`.

    Returns:
      Float32 tokens [b t n d] of the context and, if slots are predicted, of the predictions.
    """
    b = len(video_bthwc)
    later = ((0, 0), (0, grid.slots - grid.context), *((0, 0),) * 3)
    video_bthwc = jnp.pad(video_bthwc, later)  # the encoder reads only the patches of the context
    whole = clip_grid(video_bthwc, loaded.encoder.patch)
    n = whole[1] * whole[2]
    keep_bk = repeat(jnp.arange(grid.context * n), "k -> b k", b=b)
    encoder_params = {"params": params["encoder"]}
    tokens_bkd = loaded.encoder.apply(encoder_params, video_bthwc, keep_bk).tokens_bnd
    context_bkd = tokens_bkd[:, loaded.encoder.class_tokens :]
    found = [rearrange(context_bkd, "b (t n) d -> b t n d", n=n)]
    if not grid.predicted:
        return found
    masked_bm = repeat(jnp.arange(grid.context * n, grid.slots * n), "m -> b m", b=b)
    first, last = (n * (x - grid.context) for x in (grid.predicted.start, grid.predicted.stop))
    chosen_bm = repeat(jnp.arange(first, last), "m -> b m", b=b)
    predictor, head = loaded.predictor.predictor, loaded.predictor.head
    latents_bmd = predictor.apply(
        {"params": params["predictor"]}, tokens_bkd, keep_bk, masked_bm, whole, chosen_bm
    )
    if head is not None:
        latents_bmd = head.apply({"params": params["head"]}, latents_bmd)
    return [*found, rearrange(latents_bmd, "b (t n) d -> b t n d", n=n)]


def _check_predictor(loaded: LoadedEncoder, encoder: FrozenEncoder) -> int:
    """Checks the shapes of the predictor's parameters and returns the width of its predictions."""
    found, e = loaded.predictor, loaded.encoder
    whole = found.frames, e.size // e.patch, e.size // e.patch
    count = whole[0] * whole[1] * whole[2]
    tokens_bnd = jnp.zeros((1, e.class_tokens + 1, encoder.width))
    places = jnp.arange(count)[None]

    def init(key):
        inputs = tokens_bnd, places[:, :1], places[:, 1:], whole
        latents_bmd, variables = found.predictor.init_with_output(key, *inputs)
        params = {"predictor": variables["params"]}
        if found.head is not None:
            latents_bmd, variables = found.head.init_with_output(key, latents_bmd)
            params["head"] = variables["params"]
        return latents_bmd, params

    latents_bmd, expected = jax.eval_shape(init, jax.random.key(0))
    expected = match.leaf_shapes(mesh_lib.unbox(expected))
    match.check_shapes(match.leaf_shapes(found.params), expected, "the checkpoint's predictor")
    return latents_bmd.shape[-1]
