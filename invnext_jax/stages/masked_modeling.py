"""Masked modeling: sampled masks, models with masked inputs, and rows of the loss tables.

Shape key: b batch, t frames, h w pixels, c channels, k visible tokens, m masked tokens (or only
the predicted ones), n patches (of all clips, times the noise draws), p pixels of a patch,
d width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.models import decoder
from invnext_jax.models.patches import Grid, extract_patch_pixels
from invnext_jax.objectives import masks, prediction_task, reconstruction


class MaskSample(NamedTuple):
    """A mask for a batch, with the choice of predicted patches and the diffusion noise.

    Attributes:
      keep_bk: positions of the visible patches.
      masked_bm: positions of all other patches.
      noise: diffusion noise and timestep of each predicted patch; None without a diffusion loss.
      chosen_bm: indices into `masked_bm` of the patches that are predicted; None for all.
      seen_bk: bool, which visible patches the predictor gets; None for all.
    """

    keep_bk: jax.Array
    masked_bm: jax.Array
    noise: reconstruction.Noise | None = None
    chosen_bm: jax.Array | None = None
    seen_bk: jax.Array | None = None

    @property
    def predicted_bm(self) -> jax.Array:
        """Positions of the predicted patches, int32 [b m]."""
        if self.chosen_bm is None:
            return self.masked_bm
        return jnp.take_along_axis(self.masked_bm, self.chosen_bm, axis=1)


class MaskKeys(NamedTuple):
    """Random keys for one mask of a step."""

    choice: jax.Array
    timestep: jax.Array
    noise: jax.Array
    droppath: jax.Array


class MaskedModel(nn.Module):
    """Base class of both stages' models. Subclasses define `encoder` and `decoder`."""

    def decode(
        self, noised_np: jax.Array | None, t_n: jax.Array | None, latents_nd: jax.Array
    ) -> jax.Array:
        """Decodes patches; returns [n, 2p] for a diffusion decoder, otherwise pixels [n p]."""
        return decoder.decode(self.decoder, noised_np, t_n, latents_nd)

    def init_decoder(self, sample: MaskSample, latents_bmd: jax.Array | None) -> None:
        """Runs the decoder, if there is one, to initialize its parameters."""
        if self.decoder is not None:
            latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
            self.decode(*(sample.noise or (None, None)), latents_nd)


class LossInputs(NamedTuple):
    """Arguments of a loss function.

    Attributes:
      model: the stage's model.
      params: parameters of the model.
      features: output of the model's `features` under this mask.
      target: output of the stage's `compute_target`.
      video_bthwc: normalized clips.
      sample: the mask.
    """

    model: nn.Module
    params: Any
    features: Any
    target: Any
    video_bthwc: jax.Array
    sample: MaskSample


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of a stage's loss table. The weight of the loss is `config.loss.<name of the row>`.

    Attributes:
      modules: top-level parameter groups that the loss needs, in addition to encoder and pool.
      function: returns the float32 loss for one mask, or a dict of scalars in which the entry with
        the row's name is the loss and all other entries are metrics.
      needs_teacher: whether the loss needs the output of the image teacher.
    """

    modules: tuple[str, ...]
    function: Callable[[LossInputs], jax.Array | dict[str, jax.Array]]
    needs_teacher: bool = False


def run_features(
    model: nn.Module,
    params: Any,
    video_bthwc: jax.Array,
    sample: MaskSample,
    rngs: dict[str, jax.Array] | None = None,
) -> Any:
    """Runs a model on masked clips. Drop path is only active if `rngs` are given."""
    inputs = video_bthwc, sample.keep_bk, sample.masked_bm, sample.chosen_bm, sample.seen_bk
    return model.apply({"params": params}, *inputs, rngs=rngs, method="features")


def pixel_terms(
    model: nn.Module,
    params: Any,
    latents_bmd: jax.Array,
    video_bthwc: jax.Array,
    sample: MaskSample,
) -> dict[str, jax.Array]:
    """Computes the pixel loss of the predicted patches; see `reconstruction.loss_terms`."""
    start_np = extract_patch_pixels(video_bthwc, sample.predicted_bm, model.encoder.patch)
    decode = functools.partial(model.apply, {"params": params}, method="decode")
    chunks = model.decoder.chunks
    return reconstruction.loss_terms(decode, start_np, latents_bmd, sample.noise, chunks)


def pixel_loss(inputs: LossInputs) -> dict[str, jax.Array]:
    """Computes the pixel loss; the `Loss.function` of both stages."""
    latents_bmd = inputs.features.latents_bmd
    return pixel_terms(inputs.model, inputs.params, latents_bmd, inputs.video_bthwc, inputs.sample)


def make_sample(config: Any, mask: masks.Mask, keys: MaskKeys, grid: Grid) -> MaskSample:
    """Samples which patches the predictor gets and predicts under a mask, and the diffusion noise.

    Args:
      config: the run's config.
      mask: (keep_bk, masked_bm).
      keys: random keys of this mask.
      grid: frames, rows and columns of the clips.
    """
    sample, share = MaskSample(*mask), config.mask.predicted
    if share < 1:
        chosen_bm = prediction_task.sample_predicted(keys.choice, sample.masked_bm, share)
        sample = sample._replace(chosen_bm=chosen_bm)
    if frames := config.mask.context_frames:
        key = jax.random.fold_in(keys.choice, 1)
        seen_bk = prediction_task.sample_context(key, sample.keep_bk, grid, frames)
        sample = sample._replace(seen_bk=seen_bk)
    if not (config.loss.get("pixels", 0) and config.decoder.kind == "diffusion"):
        return sample
    n, pixels = sample.predicted_bm.size * config.decoder.noise_draws, 3 * config.encoder.patch**2
    return sample._replace(noise=reconstruction.sample_noise(keys.timestep, keys.noise, n, pixels))
