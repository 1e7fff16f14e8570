"""Pictures of single clips: masks, sampled reconstructions, and features as colours.

A strip is the frames of one clip side by side. All pictures are made from a run's own functions,
with the parameters that the report was given.

Shape key: b clips, t frames, h w pixels, c channels, y x grid rows and columns, n tokens,
s patches of a frame, k visible, m masked tokens, p pixels of a patch, d width.
"""

import base64
import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from PIL import Image

from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.decoder import DiffusionDecoder
from invnext_jax.models.patches import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    clip_grid,
    denormalize,
    insert_patch_pixels,
    normalize,
)
from invnext_jax.objectives import diffusion, masks, reconstruction
from invnext_jax.stages import image_teacher, stage1, stage2

SAMPLING_STEPS = 100
HIDDEN = np.array([226, 230, 235], np.uint8)  # colour of a masked patch
OUTLINE = np.array([255, 255, 255], np.uint8)
MAX_FRAMES, FRAME_SIDE, GAP = 8, 96, 3


class Reconstruction(NamedTuple):
    """What Stage 1 makes of clips: uint8 videos [b t h w c] and the mask [b t y x], True = seen.

    The videos are None of a run without a pixel decoder.
    """

    seen_btyx: np.ndarray
    own_bthwc: np.ndarray | None
    other_bthwc: np.ndarray | None


def reconstruct(
    config: Any, params: Any, frozen: Any, video_bthwc: np.ndarray, seed: int = 0
) -> Reconstruction:
    """Masks clips as in training and samples the masked patches from the pixel decoder.

    Args:
      config: of a Stage 1 run.
      params: its parameters.
      frozen: as `stage1.init_frozen` gave it; the teacher's attention draws a semantic mask.
      video_bthwc: uint8 clips.
      seed: of the mask and the noise.

    Returns:
      The mask; the clips with their masked patches sampled given their own latents; and, with the
      very same noise, given the latents of the next clip.
    """
    model = stage1.make_model(config)

    @jax.jit
    def run(params, frozen, video_bthwc, key):
        clips = normalize(video_bthwc)
        keep_bk, masked_bm = stage1.see_and_draw(config, frozen, clips, key)[1][:2]
        latents_bmd = model.apply(
            {"params": params}, clips, keep_bk, masked_bm, method="features"
        ).latents_bmd
        if latents_bmd is None:
            return keep_bk, None, None

        def sample(latents_bmd):
            latents_nd = rearrange(latents_bmd, "b m d -> (b m) d")
            patches_np = _sample_patches(model, params, latents_nd, config.encoder.patch, key)
            return denormalize(insert_patch_pixels(clips, masked_bm, patches_np))

        return keep_bk, sample(latents_bmd), sample(jnp.roll(latents_bmd, -1, axis=0))

    out = run(params, frozen, video_bthwc, jax.random.key(seed))
    keep_bk, own_bthwc, other_bthwc = jax.device_get(out)
    grid = clip_grid(video_bthwc, config.encoder.patch)
    return Reconstruction(visible_places(keep_bk, grid), own_bthwc, other_bthwc)


def _sample_patches(model, params, latents_nd, patch, key) -> jax.Array:
    """Normalised pixels [n p]; nothing of the true patch enters, not even its mean."""
    shape = (latents_nd.shape[0], 3 * patch**2)
    start_key, noise_key = jax.random.split(jax.random.fold_in(key, 1))

    def decode(noised_np, t_n):
        return model.apply({"params": params}, noised_np, t_n, latents_nd, method="decode")

    def decode_clipped(noised_np, t_n):
        return _keep_pixels_in_range(decode(noised_np, t_n), noised_np, t_n)

    start_np = jax.random.normal(start_key, shape)
    if not isinstance(model.decoder, DiffusionDecoder):
        return decode(start_np, jnp.zeros(shape[:1], jnp.int32))
    schedule = diffusion.respace_schedule(reconstruction.SCHEDULE, SAMPLING_STEPS)
    noises_snp = jax.random.normal(noise_key, (SAMPLING_STEPS, *shape))
    return diffusion.sample(decode_clipped, schedule, noises_snp, start_np, 1.0)[-1]


def _keep_pixels_in_range(output, noised_np, t_n) -> jax.Array:
    """Changes the predicted noise so that the patch that it implies has pixels from 0 to 255.

    At the first steps the patch is the difference of two large numbers divided by a small one; an
    early decoder's samples would leave the range of pixels and never come back.
    """
    noise_np, share_np = jnp.split(output, 2, axis=-1)
    signal_n1 = jnp.asarray(reconstruction.SCHEDULE.alphas_cumprod, jnp.float32)[t_n][:, None]
    start_np = (noised_np - jnp.sqrt(1 - signal_n1) * noise_np) / jnp.sqrt(signal_n1)
    channel = noised_np.shape[1] // 3
    low, high = (np.repeat((v - IMAGENET_MEAN) / IMAGENET_STD, channel) for v in (0, 1))
    start_np = jnp.clip(start_np, low[None], high[None])
    noise_np = (noised_np - jnp.sqrt(signal_n1) * start_np) / jnp.sqrt(1 - signal_n1)
    return jnp.concatenate([noise_np, share_np], axis=-1)


def stage2_masks(
    config: Any, video_bthwc: np.ndarray, teacher: Any = None, seed: int = 0
) -> list[np.ndarray]:
    """Masks of each kind as drawn in a Stage 2 step: [b t y x], True = seen.

    Args:
      config: of a Stage 2 run.
      video_bthwc: uint8 clips.
      teacher: the image teacher's parameters, for a semantic mask.
      seed: of the masks.
    """
    grid = clip_grid(video_bthwc, config.encoder.patch)
    attention_bts = None
    if masks.needs_attention(config.mask):
        seen = image_teacher.see(config, teacher, normalize(video_bthwc))
        attention_bts = rearrange(seen.attention_bn, "(b t) s -> b t s", t=grid[0])
    drawn = stage2.draw(
        config, video_bthwc.shape[0], grid, jax.random.key(seed), attention_bts=attention_bts
    )
    return [visible_places(np.asarray(draws.keep_bk), grid) for draws in drawn]


def visible_places(keep_bk: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Turns positions of visible patches into [b t y x], True = seen."""
    seen_bn = np.zeros((keep_bk.shape[0], np.prod(grid)), bool)
    np.put_along_axis(seen_bn, keep_bk, True, axis=1)
    return seen_bn.reshape(-1, *grid)


def grid_tokens(config: Any, params: Any, video_bthwc: np.ndarray) -> np.ndarray:
    """Final tokens of the whole clips, class tokens left out: [b t y x d]."""
    encoder = encoder_model.from_config(config)
    run = jax.jit(lambda params, x: encoder.apply({"params": params}, normalize(x)).tokens_bnd)
    tokens_bnd = np.asarray(run(params, video_bthwc))[:, encoder.class_tokens :]
    t, y, x = clip_grid(video_bthwc, encoder.patch)
    return rearrange(tokens_bnd, "b (t y x) d -> b t y x d", t=t, y=y, x=x)


def color_features(tokens_tyxd: np.ndarray, size: int) -> np.ndarray:
    """The three main components of one clip's tokens as red, green, blue.

    Args:
      tokens_tyxd: tokens of a clip.
      size: side of the frames that the colours are smoothly enlarged to.

    Returns:
      uint8 [t size size 3].
    """
    t, y, x, _ = tokens_tyxd.shape
    x_nd = rearrange(tokens_tyxd, "t y x d -> (t y x) d").astype(np.float64)
    x_nd = x_nd - x_nd.mean(axis=0, keepdims=True)
    _, _, axes_kd = np.linalg.svd(x_nd, full_matrices=False)
    axes_kd = axes_kd[:3]
    # A component's sign is arbitrary; the largest weight is made positive.
    largest = np.take_along_axis(axes_kd, np.abs(axes_kd).argmax(axis=1)[:, None], axis=1)
    z_nk = x_nd @ (axes_kd * np.sign(largest)).T
    low, high = np.percentile(z_nk, (1, 99), axis=0)
    z_nk = np.clip((z_nk - low[None]) / np.maximum(high - low, 1e-9)[None], 0, 1)
    z_tyxk = rearrange(z_nk, "(t y x) k -> t y x k", t=t, y=y, x=x)
    frames = [Image.fromarray((frame * 255).astype(np.uint8)) for frame in z_tyxk]
    return np.stack([np.asarray(f.resize((size, size), Image.Resampling.BICUBIC)) for f in frames])


def hide_patches(video_thwc: np.ndarray, seen_tyx: np.ndarray) -> np.ndarray:
    """A clip as the encoder sees it: masked patches are a plain grey."""
    seen_thw = _enlarge(seen_tyx, video_thwc.shape[1] // seen_tyx.shape[1])
    return np.where(seen_thw[..., None], video_thwc, HIDDEN)


def outline_patches(video_thwc: np.ndarray, seen_tyx: np.ndarray) -> np.ndarray:
    """An enlarged clip with a white frame round each patch that was visible."""
    factor = scale_of(video_thwc)
    large = repeat(video_thwc, "t h w c -> t (h p) (w q) c", p=factor, q=factor)
    side = large.shape[1] // seen_tyx.shape[1]
    row = np.arange(large.shape[1]) % side
    edge_hw = np.isin(row, (0, side - 1))[:, None] | np.isin(row, (0, side - 1))[None]
    framed_thw = _enlarge(seen_tyx, side) & edge_hw[None, : large.shape[1], : large.shape[2]]
    return np.where(framed_thw[..., None], OUTLINE, large)


def _enlarge(seen_tyx: np.ndarray, factor: int) -> np.ndarray:
    return repeat(seen_tyx, "t y x -> t (y p) (x q)", p=factor, q=factor)


def scale_of(video_thwc: np.ndarray) -> int:
    """How often a pixel is repeated so that a frame has about `FRAME_SIDE` pixels."""
    return max(1, FRAME_SIDE // video_thwc.shape[1])


def to_data_uri(video_thwc: np.ndarray, lossless: bool = True) -> str:
    """A strip of at most `MAX_FRAMES` evenly spaced frames as a PNG, or JPEG, inside an address."""
    t = video_thwc.shape[0]
    picked = video_thwc[np.linspace(0, t - 1, min(t, MAX_FRAMES)).round().astype(int)]
    factor = scale_of(picked)
    picked = repeat(picked, "t h w c -> t (h p) (w q) c", p=factor, q=factor)
    gap = np.full((*picked.shape[:2], GAP, 3), 255, np.uint8)
    wide = rearrange(np.concatenate([picked, gap], axis=2), "t h w c -> h (t w) c")[:, :-GAP]
    out = io.BytesIO()
    kind = "png" if lossless else "jpeg"
    Image.fromarray(np.ascontiguousarray(wide)).save(out, format=kind, optimize=True)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode("ascii")
