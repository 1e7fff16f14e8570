"""Reconstructions of clips, with masked patches sampled from a trained pixel decoder.

Shape key: b clips, t frames, h w pixels, c channels, y x grid rows and columns, k visible,
m masked tokens, n patches of all clips, p pixels of a patch, d width, s sampling steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.models.decoder import DiffusionDecoder
from invnext_jax.models.patches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    clip_grid,
    denormalize,
    insert_patch_pixels,
    normalize,
)
from invnext_jax.objectives import diffusion, reconstruction

SAMPLING_STEPS = 100
DRAWS = 8  # samples whose mean is shown
MAX_PATCHES = 2**12  # masked patches of which it is computed; more would take too long on a CPU


class Reconstruction(NamedTuple):
    """Reconstructed clips.

    Attributes:
      visible_btyx: bool, True for visible patches.
      own_bthwc: uint8 clips with masked patches sampled from the clip's own latents; None if the
        model has no pixel decoder.
      other_bthwc: same as `own_bthwc`, with the same noise but the latents of the next clip in the
        batch.
      mean_bthwc: mean of `DRAWS` samples with different noise, of which `own_bthwc` is the first.
        None if the decoder is not a diffusion decoder, or there are more than `MAX_PATCHES` masked
        patches.
    """

    visible_btyx: np.ndarray
    own_bthwc: np.ndarray | None
    other_bthwc: np.ndarray | None
    mean_bthwc: np.ndarray | None


def reconstruct(
    stage: Any, config: Any, params: Any, frozen: Any, video_bthwc: np.ndarray, seed: int = 0
) -> Reconstruction:
    """Masks clips as in training and samples the masked patches from the pixel decoder.

    Args:
      stage: a masked modeling stage; its first mask is used.
      config: config of a run of this stage.
      params: trained parameters of the run.
      frozen: frozen parameters of the run, which are used by masks that need the teacher's
        attention.
      video_bthwc: uint8 clips.
      seed: seed of the mask and the noise.
    """
    model = stage.make_model(config)

    @jax.jit
    def run(params, frozen, video_bthwc, key):
        clips = normalize(video_bthwc)
        keep_bk, masked_bm = stage.apply_teacher(config, frozen, clips, key)[1][0][:2]
        latents_bmd = model.apply(
            {"params": params}, clips, keep_bk, masked_bm, method="features"
        ).latents_bmd
        if latents_bmd is None:
            return keep_bk, None, None, None

        def sample(latents_bmd, draw=0):
            latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
            noise_key = jax.random.fold_in(key, draw + 1)
            return _sample_patches(model, params, latents_nd, config.encoder.patch, noise_key)

        def show(patches_np):
            return denormalize(insert_patch_pixels(clips, masked_bm, patches_np))

        other_bthwc = show(sample(jnp.roll(latents_bmd, -1, axis=0)))
        if not isinstance(model.decoder, DiffusionDecoder) or masked_bm.size > MAX_PATCHES:
            return keep_bk, show(sample(latents_bmd)), other_bthwc, None
        # One draw after the other needs no more memory than a single draw.
        draws_snp = jax.lax.map(lambda draw: sample(latents_bmd, draw), jnp.arange(DRAWS))
        return keep_bk, show(draws_snp[0]), other_bthwc, show(draws_snp.mean(axis=0))

    out = run(params, frozen, video_bthwc, jax.random.key(seed))
    keep_bk, *videos = jax.device_get(out)
    grid = clip_grid(video_bthwc, config.encoder.patch)
    return Reconstruction(visible_grid(keep_bk, grid), *videos)


def visible_grid(keep_bk: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Converts positions of visible patches to a boolean mask [b t y x]."""
    visible_bn = np.zeros((keep_bk.shape[0], np.prod(grid)), bool)
    np.put_along_axis(visible_bn, np.asarray(keep_bk), True, axis=1)
    return visible_bn.reshape(-1, *grid)


def _sample_patches(model, params, latents_nd, patch, key) -> jax.Array:
    """Samples normalized pixels [n p], without using any statistics of the true patches."""
    shape = (latents_nd.shape[0], 3 * patch**2)
    start_key, noise_key = jax.random.split(key)

    def decode(noised_np, t_n):
        return model.apply({"params": params}, noised_np, t_n, latents_nd, method="decode")

    def decode_clipped(noised_np, t_n):
        return _clip_pixels(decode(noised_np, t_n), noised_np, t_n)

    start_np = jax.random.normal(start_key, shape)
    if not isinstance(model.decoder, DiffusionDecoder):
        return decode(start_np, jnp.zeros(shape[:1], jnp.int32))
    schedule = diffusion.respace_schedule(reconstruction.SCHEDULE, SAMPLING_STEPS)
    noises_snp = jax.random.normal(noise_key, (SAMPLING_STEPS, *shape))
    return diffusion.sample(decode_clipped, schedule, noises_snp, start_np, 1.0)[-1]


def _clip_pixels(output, noised_np, t_n) -> jax.Array:
    """Changes the predicted noise so that all pixels of the estimated patch are from 0 to 255.

    In the first sampling steps, the estimate is the difference of two large numbers divided by a
    small one. Without this change, samples of a model early in training would leave the range of
    pixel values and not return.
    """
    noise_np, share_np = jnp.split(output, 2, axis=-1)
    signal_n1 = jnp.asarray(reconstruction.SCHEDULE.alphas_cumprod, jnp.float32)[t_n][:, None]
    start_np = (noised_np - jnp.sqrt(1 - signal_n1) * noise_np) / jnp.sqrt(signal_n1)
    channel = noised_np.shape[1] // 3
    low, high = (np.repeat((v - IMAGENET_MEAN) / IMAGENET_STD, channel) for v in (0, 1))
    start_np = jnp.clip(start_np, low[None], high[None])
    noise_np = (noised_np - jnp.sqrt(signal_n1) * start_np) / jnp.sqrt(1 - signal_n1)
    return jnp.concatenate([noise_np, share_np], axis=-1)
